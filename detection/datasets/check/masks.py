"""Findings about masks. M annotations."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from detection.data.segmentations import Segmentations, mask_fault
from detection.datasets.check.boxes import BoxColumns
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import FindingList

OUTSIDE_PIXELS, OUTSIDE_FRACTION = 2.0, 0.02
"""How far a mask may leave its box: pixels, and fraction of the box's longer side. Masks include
each pixel that they touch, and tools round boxes."""


def find_masks(columns: Columns, found: BoxColumns, findings: FindingList) -> None:
    """Add masks that cannot be read, are missing, or leave their boxes."""
    table, sizes = columns.annotations, columns.images.sizes
    masks = table.segmentations
    there = masks.are_there
    if table.unreadable_masks:
        # an RLE cannot be read without its image's size, which is a finding of its own
        faults = {
            at: mask_fault(value, sizes[columns.image_places[at]].tolist())
            for at in np.flatnonzero(~there & columns.are_sized).tolist()
            if (value := _mask_of(columns, at))
        }
        findings.add_annotations(
            "mask-unreadable", np.array([*faults], np.int64), faults.__getitem__
        )
    if table.dropped_mask_parts:
        kept = np.diff(masks.object_offsets)
        at = [
            place
            for place in np.flatnonzero(kept).tolist()
            if len(_mask_of(columns, place)) != kept[place]
        ]
        findings.add_annotations("mask-parts", np.array(at, np.int64), lambda at: "")
    plain = ~table.is_crowd
    if there[plain].any():
        findings.add_annotations("mask-missing", np.flatnonzero(plain & ~there), lambda at: "")
    extents = _extents(masks, columns)
    with np.errstate(invalid="ignore", over="ignore"):
        near, far = found.xywh[:, :2], found.xywh[:, :2] + found.xywh[:, 2:]
        slack = OUTSIDE_PIXELS + OUTSIDE_FRACTION * (far - near).max(axis=1)
        beyond = np.maximum(near - extents[:, :2], extents[:, 2:] - far).max(axis=1)
        leaves = np.flatnonzero(found.is_good & (beyond > slack))
    findings.add_annotations("mask-outside-box", leaves, lambda at: f"by {beyond[at]:.4g} pixels")


def _mask_of(columns: Columns, at: int) -> Any:
    row = int(columns.annotation_rows[at])
    return columns.document.lists["annotations"][row].get("segmentation")


def _extents(masks: Segmentations, columns: Columns) -> np.ndarray:
    """Return (M, 4) float64 xyxy of all masks, NaN without one."""
    extents = np.full((len(masks), 4), np.nan)
    owners = np.repeat(np.arange(len(masks)), np.diff(masks.object_offsets))
    if len(owners):
        # every polygon has an even number of coordinates, so x are at even places
        starts = masks.part_offsets[:-1] // 2
        for column, (reduce, axis) in enumerate(
            ((np.minimum, 0), (np.minimum, 1), (np.maximum, 0), (np.maximum, 1))
        ):
            parts = reduce.reduceat(masks.coordinates[axis::2], starts)
            firsts = np.flatnonzero(np.diff(owners, prepend=-1))
            extents[owners[firsts], column] = reduce.reduceat(parts, firsts)
    coded = np.flatnonzero(np.diff(masks.run_lengths.offsets))
    if len(coded):
        sizes = columns.images.sizes[columns.image_places[coded]].tolist()
        codes = [
            {"size": size, "counts": masks.run_lengths[at]}
            for at, size in zip(coded.tolist(), sizes, strict=True)
        ]
        xywh = coco_mask.toBbox(codes)
        extents[coded] = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        extents[coded[(xywh[:, 2:] <= 0).any(axis=1)]] = np.nan  # an empty mask leaves nothing
    return extents
