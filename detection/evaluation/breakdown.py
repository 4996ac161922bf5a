"""AP of parts of the data: by size, shape, crowding, place in the image and other attributes.

I images, D detections, G objects.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from detection.evaluation.matching import (
    AREA_RANGES,
    MatchTable,
    average_precision,
    match_in_range,
)
from detection.evaluation.overlaps import box_blocks
from detection.evaluation.score_curves import AT_HALF
from detection.ops.boxes import xyxy_to_xywh

ASPECT_EDGES = (1 / 2, 4 / 5, 5 / 4, 2.0)
"""Width over height; the middle range is nearly square."""
COUNT_EDGES = (2, 4, 8, 16)
OVERLAP_EDGES = (0.01, 0.25, 0.5)
POSITION_EDGES = (1 / 3, 2 / 3)
"""Distance of a box's centre from the image's centre: 0 in the centre, 1 at the border."""


@dataclass(frozen=True)
class Part:
    """The scores of the objects of one range of an attribute.

    objects: those that count. ap, ap50: the mean over the classes with such objects; NaN without
    objects, and None if the attribute tells nothing of a wrong detection. found: share of the
    objects with a detection of their class at IoU 0.5; `found_thresh` with at least the score
    threshold. Both NaN without objects.
    """

    name: str
    objects: int
    ap: float | None
    ap50: float | None
    found: float
    found_thresh: float


def by_size(table: MatchTable, *, score_thresh: float) -> list[Part]:
    """Return COCO's small, medium and large objects, matched anew as by COCO."""
    names = {"small": "small, to 32²", "medium": "medium, to 96²", "large": "large"}
    return [
        _part(match_in_range(table, AREA_RANGES[key]), name, score_thresh)
        for key, name in names.items()
    ]


def by_aspect(table: MatchTable, *, score_thresh: float) -> list[Part]:
    """Return ranges of width over height."""
    return _by_box(
        table,
        _aspects(table.gt_box),
        _aspects(table.det_box),
        ASPECT_EDGES,
        names=("to 1:2", "to 4:5", "square", "to 2:1", "wider"),
        score_thresh=score_thresh,
    )


def by_position(table: MatchTable, sizes: np.ndarray, *, score_thresh: float) -> list[Part]:
    """Return the centre and the border of the images.

    sizes: (I, 2) height and width.
    """
    return _by_box(
        table,
        _distances(table.gt_box, sizes[table.gt_image]),
        _distances(table.det_box, sizes[table.det_image]),
        POSITION_EDGES,
        names=("centre", "between", "border"),
        score_thresh=score_thresh,
    )


def by_object_count(table: MatchTable, *, score_thresh: float) -> list[Part]:
    """Return ranges of the number of objects in the image; images without any are skipped."""
    counts = np.bincount(table.gt_image[~table.gt_crowd], minlength=len(table.image_ids))
    return by_image(
        table,
        np.where(counts > 0, counts, math.nan),
        COUNT_EDGES,
        names=("1", "2 to 3", "4 to 7", "8 to 15", "16 or more"),
        score_thresh=score_thresh,
    )


def by_overlap(table: MatchTable, *, score_thresh: float) -> list[Part]:
    """Return ranges of the largest IoU with another object of the image, of any class.

    A wrong detection has no such value, so there is no AP.
    """
    parts = _by_box(
        table,
        neighbour_overlaps(table),
        np.full(len(table.det_label), math.nan),
        OVERLAP_EDGES,
        names=("alone", "to 0.25", "to 0.5", "more"),
        score_thresh=score_thresh,
    )
    return [replace(part, ap=None, ap50=None) for part in parts]


def by_image(
    table: MatchTable,
    values: np.ndarray,
    edges: Sequence[float],
    *,
    names: Sequence[str],
    score_thresh: float,
) -> list[Part]:
    """Return ranges of an attribute of images.

    Args:
        table: the detections and objects.
        values: (I,) the attribute; images with NaN are in no range.
        edges: inner edges of the ranges, which contain their lower edge.
        names: of the ranges, one more than edges.
        score_thresh: of `Part.found_thresh`.
    """
    return _by_box(
        table,
        values[table.gt_image],
        values[table.det_image],
        edges,
        names=names,
        score_thresh=score_thresh,
    )


def neighbour_overlaps(table: MatchTable) -> np.ndarray:
    """Return the largest IoU of each object's box with another one of its image: (G,)."""
    result = np.zeros(len(table.gt_label))
    boxes, plain = xyxy_to_xywh(table.gt_box), np.flatnonzero(~table.gt_crowd)
    own = boxes[plain], table.gt_image[plain]
    blocks = box_blocks(*own, *own, crowd=np.zeros(len(plain), np.bool_))
    for rows, counts, objects, ious in blocks:
        other = np.where(objects == np.repeat(rows, counts), 0.0, ious)
        result[plain[rows]] = np.maximum.reduceat(other, np.cumsum(counts) - counts)
    return result


def _aspects(boxes: np.ndarray) -> np.ndarray:
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    aspects: np.ndarray = np.full(len(boxes), math.nan)
    np.divide(width, height, out=aspects, where=height > 0)
    return aspects


def _distances(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return how far centres are from the image's centre, by the farther axis: (N,) from 0 to 1."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = sizes[:, ::-1]
    # NaN for an image without a size
    offsets = np.divide(centres, sides, out=np.full(centres.shape, math.nan), where=sides > 0)
    distances: np.ndarray = np.abs(2 * offsets - 1).max(axis=1, initial=0)
    return distances


def _by_box(
    table: MatchTable,
    of_objects: np.ndarray,
    of_detections: np.ndarray,
    edges: Sequence[float],
    *,
    names: Sequence[str],
    score_thresh: float,
) -> list[Part]:
    """Return the parts of an attribute with a value for each object (G,) and detection (D,).

    All objects are matched together. Then objects of other ranges are ignored, and so are their
    detections, and detections of other ranges that match nothing.
    """
    parts = []
    for name, (low, high) in zip(
        names, itertools.pairwise([-math.inf, *edges, math.inf]), strict=True
    ):
        inside, det_inside = (
            (values >= low) & (values < high) for values in (of_objects, of_detections)
        )
        gt_ignored = table.gt_ignored | ~inside
        # -1 in `matched` takes the appended value, which np.where drops
        of_match = np.append(gt_ignored, False)[table.matched]
        det_ignored = table.det_ignored | np.where(table.matched >= 0, of_match, ~det_inside)
        restricted = replace(table, gt_ignored=gt_ignored, det_ignored=det_ignored)
        parts.append(_part(restricted, name, score_thresh))
    return parts


def _part(table: MatchTable, name: str, score_thresh: float) -> Part:
    counted = ~table.gt_ignored
    num_objects = int(counted.sum())
    if not num_objects:
        return Part(name, 0, math.nan, math.nan, math.nan, math.nan)
    precisions = np.nanmean(average_precision(table), axis=1)  # (T,)
    found = []
    for thresh in (-math.inf, score_thresh):
        hits = table.matched[AT_HALF][(table.matched[AT_HALF] >= 0) & (table.det_score >= thresh)]
        is_found = np.zeros(len(counted), np.bool_)
        is_found[hits] = True
        found.append(float((is_found & counted).sum() / num_objects))
    return Part(name, num_objects, float(precisions.mean()), float(precisions[AT_HALF]), *found)
