"""IoU of all detections with all objects of their image, boxes or masks.

D detections, G objects, P pairs of a detection and an object of the same image.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_codec

from detection.evaluation.ground_truth import GroundTruth

MIN_OVERLAP = 0.1
"""Least IoU of `Pairs`: what overlaps less is background, for TIDE (Bolya et al. 2020)."""
_PAIRS_AT_ONCE = 2_000_000  # 16 MB for an array of them


class Pairs(NamedTuple):
    """P pairs of the same image and any class that overlap, by detection, then by object.

    detections, objects: (P,) int64. ious: (P,) float64; of a crowd region, the share of the
    detection that it covers.
    """

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray

    def of(self, rows: np.ndarray) -> "Pairs":
        """Return some of the pairs, by index or mask."""
        return Pairs(self.detections[rows], self.objects[rows], self.ious[rows])


class Block(NamedTuple):
    """All pairs of some detections.

    rows: (n,) int64 detections. counts: (n,) objects of each, at least 1. objects, ious:
    (sum of counts,).
    """

    rows: np.ndarray
    counts: np.ndarray
    objects: np.ndarray
    ious: np.ndarray


def box_blocks(
    boxes: np.ndarray,
    det_image: np.ndarray,
    objects: np.ndarray,
    gt_image: np.ndarray,
    *,
    crowd: np.ndarray,
) -> Iterator[Block]:
    """Yield the IoUs of boxes (D, 4) and objects (G, 4) of the same image; both are xywh."""
    order = np.argsort(gt_image, kind="stable")
    # the objects of an image are order[start] to order[start + count - 1]
    starts = np.searchsorted(gt_image[order], det_image)
    counts = np.searchsorted(gt_image[order], det_image, side="right") - starts
    rows = np.flatnonzero(counts)
    ends = np.cumsum(counts[rows])
    first = 0
    while first < len(rows):
        begun = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begun + _PAIRS_AT_ONCE)))
        some, own = rows[first:last], counts[rows[first:last]]
        within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
        paired = order[np.repeat(starts[some], own) + within]
        ious = _box_ious(boxes[np.repeat(some, own)].T, objects[paired].T, crowd[paired])
        yield Block(some, own, paired, ious)
        first = last


def _box_ious(a: np.ndarray, b: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Return pycocotools' IoU, to the last bit, of boxes (4, P) with objects (4, P), xywh."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        width = np.minimum(a[0] + a[2], b[0] + b[2]) - np.maximum(a[0], b[0])
        height = np.minimum(a[1] + a[3], b[1] + b[3]) - np.maximum(a[1], b[1])
        shared = width * height
        area = a[2] * a[3]
        union = np.where(crowd, area, area + b[2] * b[3] - shared)
        return np.where((width > 0) & (height > 0), shared / union, 0.0)


def codes_of(ground_truth: GroundTruth) -> list[dict[str, object]]:
    """Return the run lengths of all objects, polygons rasterised as by pycocotools."""
    codes = []
    for row in ground_truth.rows.tolist():
        shape = ground_truth.segmentation_of(row)
        if isinstance(shape, list):
            size = ground_truth.size_of(int(ground_truth.table.image_ids[row]))
            shape = mask_codec.merge(mask_codec.frPyObjects(shape, *size))
        codes.append(shape)
    return codes


def mask_blocks(
    codes: list[dict[str, object]],
    det_image: np.ndarray,
    objects: list[dict[str, object]],
    gt_image: np.ndarray,
    *,
    crowd: np.ndarray,
) -> Iterator[Block]:
    """Yield the IoUs of masks (D) and objects (G) of the same image, an image at a time."""
    dets, gts = (np.argsort(images, kind="stable") for images in (det_image, gt_image))
    for image in np.intersect1d(det_image, gt_image).tolist():
        rows, paired = (
            order[slice(*np.searchsorted(images[order], [image, image + 1]))]
            for order, images in ((dets, det_image), (gts, gt_image))
        )
        ious = mask_codec.iou(
            [codes[row] for row in rows.tolist()],
            [objects[each] for each in paired.tolist()],
            crowd[paired].astype(np.uint8),
        )
        counts = np.full(len(rows), len(paired))
        yield Block(rows, counts, np.tile(paired, len(rows)), ious.ravel())


class Overlaps(NamedTuple):
    """See `MatchTable`: best_iou_same, best_iou_any, best_any_gt and pairs."""

    best_same: np.ndarray
    best_any: np.ndarray
    best_object: np.ndarray
    pairs: Pairs


def reduce_overlaps(
    blocks: Iterator[Block], det_label: np.ndarray, gt_label: np.ndarray, crowd: np.ndarray
) -> Overlaps:
    """Reduce all pairs to those that overlap and to the best of each detection."""
    num = len(det_label)
    best_same, best_any = np.zeros(num), np.zeros(num)
    best_object = np.full(num, -1, np.int64)
    kept = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for rows, counts, objects, ious in blocks:
        starts = np.cumsum(counts) - counts
        detections = np.repeat(rows, counts)
        plain = np.where(crowd[objects], 0.0, ious)
        own = np.where(det_label[detections] == gt_label[objects], plain, 0.0)
        best_same[rows] = np.maximum.reduceat(own, starts)
        best_any[rows] = np.maximum.reduceat(plain, starts)
        # the first object with the largest IoU
        is_best = (plain == np.repeat(best_any[rows], counts)) & (plain > 0)
        first = np.minimum.reduceat(np.where(is_best, objects, len(crowd)), starts)
        best_object[rows] = np.where(first < len(crowd), first, -1)
        near = ious >= MIN_OVERLAP
        kept.append(Pairs(detections[near], objects[near], ious[near]))
    pairs = Pairs(*(np.concatenate(column) for column in zip(*kept, strict=True)))
    order = np.lexsort((pairs.objects, pairs.detections))
    return Overlaps(best_same, best_any, best_object, pairs.of(order))


def best_of(pairs: Pairs, num_detections: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest IoU of each detection, 0 for none, and the first such object, or -1."""
    detections, objects, ious = pairs
    best, which = np.zeros(num_detections), np.full(num_detections, -1, np.int64)
    starts = np.flatnonzero(np.diff(detections, prepend=-1))
    if len(starts):
        best[detections[starts]] = np.maximum.reduceat(ious, starts)
    is_best = ious == best[detections]
    # of several values for one place the last is kept, so the first has to be the last
    which[detections[is_best][::-1]] = objects[is_best][::-1]
    return best, which
