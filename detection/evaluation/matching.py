"""Matching of all detections with all objects by COCO's rules, in arrays.

Every analysis of a report starts from it. The average precision of it is pycocotools'.

I images, K classes, D detections, G objects, T=10 IoU thresholds, P pairs of a detection and an
object of the same image.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from pycocotools import mask as mask_codec

from detection.evaluation.detection_table import DetectionTable, IoUType
from detection.evaluation.ground_truth import GroundTruth
from detection.evaluation.overlaps import (
    Pairs,
    box_blocks,
    codes_of,
    mask_blocks,
    reduce_overlaps,
)
from detection.ops.boxes import xywh_to_xyxy

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100
"""Of an image and class. This and the two above are COCO's, and so are the ranges of area."""
AREA_RANGES = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


@dataclass(frozen=True)
class MatchTable:
    """All detections and objects of the scored images, and COCO's greedy matching of them.

    image_ids: (I,) int64, ascending. category_ids: (K,) int64. names: of the K classes.

    Detections are at most 100 of an image and class, sorted by class, then by falling score, then
    by image. det_image, det_label: (D,) int64 indices of images and classes. det_score: (D,)
    float64. det_box: (D, 4) float64 xyxy, of a mask the box around it. det_area: (D,) float64.
    det_row: (D,) int64 rows of the `DetectionTable`.

    Objects are in file order. gt_image, gt_label: (G,) int64. gt_box: (G, 4) float64 xyxy.
    gt_area: (G,) float64. gt_crowd: (G,) bool. gt_ignored: (G,) bool, crowds and what is outside
    the range of area. gt_ids: (G,) int64, ids of the annotations. gt_row: (G,) int64 rows of the
    `AnnotationTable`.

    iou_thresholds: (T,). matched: (T, D) int64 object of each detection, -1 for none. det_ignored:
    (T, D) bool, neither true nor false: matched with an ignored object, or with none and outside
    the range of area.

    best_iou_same, best_iou_any: (D,) float64 largest IoU with an object of the same class, or of
    any class, without crowds; 0 for none. best_any_gt: (D,) int64 the object of the latter, -1 for
    none. pairs: those with IoU of at least `MIN_OVERLAP`.
    """

    iou_type: IoUType
    image_ids: np.ndarray
    category_ids: np.ndarray
    names: tuple[str, ...]
    det_image: np.ndarray
    det_label: np.ndarray
    det_score: np.ndarray
    det_box: np.ndarray
    det_area: np.ndarray
    det_row: np.ndarray
    gt_image: np.ndarray
    gt_label: np.ndarray
    gt_box: np.ndarray
    gt_area: np.ndarray
    gt_crowd: np.ndarray
    gt_ignored: np.ndarray
    gt_ids: np.ndarray
    gt_row: np.ndarray
    iou_thresholds: np.ndarray
    matched: np.ndarray
    det_ignored: np.ndarray
    best_iou_same: np.ndarray
    best_iou_any: np.ndarray
    best_any_gt: np.ndarray
    pairs: Pairs

    @property
    def class_slices(self) -> list[slice]:
        """The detections of each class, K slices."""
        ends = np.searchsorted(self.det_label, np.arange(len(self.names) + 1)).tolist()
        return [slice(*each) for each in itertools.pairwise(ends)]

    @property
    def num_objects(self) -> np.ndarray:
        """The objects of each class that count: (K,) int64."""
        counted: np.ndarray = np.bincount(
            self.gt_label[~self.gt_ignored], minlength=len(self.names)
        )
        return counted

    @property
    def is_true(self) -> np.ndarray:
        """Whether a detection is right at each threshold: (T, D) bool."""
        true: np.ndarray = (self.matched >= 0) & ~self.det_ignored
        return true


def match(found: DetectionTable, ground_truth: GroundTruth, *, iou_type: IoUType) -> MatchTable:
    """Match detections with objects of all areas.

    Args:
        found: the detections; those in other images are not taken. May be empty.
        ground_truth: of the scored images; may have no objects.
        iou_type: whether boxes or masks are compared. `found` and `ground_truth` have to have them.
    """
    image_ids, category_ids = ground_truth.image_ids, np.array(list(ground_truth.names), np.int64)
    kept = _kept_rows(found, image_ids, category_ids)
    table, rows = ground_truth.table, ground_truth.rows
    crowd = table.is_crowd[rows]
    codes = [found.masks[row] for row in kept.tolist()] if found.masks else []
    boxes = mask_codec.toBbox(codes).reshape(-1, 4) if codes else found.boxes[kept]
    det_image = np.searchsorted(image_ids, found.image_ids[kept])
    gt_image = np.searchsorted(image_ids, table.image_ids[rows])
    det_label = np.searchsorted(category_ids, found.category_ids[kept])
    gt_label = np.searchsorted(category_ids, table.category_ids[rows])
    if iou_type == "bbox":
        blocks = box_blocks(boxes, det_image, table.xywh[rows], gt_image, crowd=crowd)
    else:
        blocks = mask_blocks(codes, det_image, codes_of(ground_truth), gt_image, crowd=crowd)
    overlaps = reduce_overlaps(blocks, det_label, gt_label, crowd)
    unmatched = MatchTable(
        iou_type=iou_type,
        image_ids=image_ids,
        category_ids=category_ids,
        names=tuple(ground_truth.names.values()),
        det_image=det_image,
        det_label=det_label,
        det_score=found.scores[kept],
        det_box=xywh_to_xyxy(boxes),
        det_area=found.areas[kept],
        det_row=kept,
        gt_image=gt_image,
        gt_label=gt_label,
        gt_box=xywh_to_xyxy(table.xywh[rows]),
        gt_area=table.areas[rows],
        gt_crowd=crowd,
        gt_ignored=crowd,
        gt_ids=table.ids[rows],
        gt_row=rows,
        iou_thresholds=IOU_THRESHOLDS,
        matched=np.zeros((0, 0), np.int64),
        det_ignored=np.zeros((0, 0), np.bool_),
        best_iou_same=overlaps.best_same,
        best_iou_any=overlaps.best_any,
        best_any_gt=overlaps.best_object,
        pairs=overlaps.pairs,
    )
    return match_in_range(unmatched, AREA_RANGES["all"])


def match_in_range(table: MatchTable, area_range: tuple[float, float]) -> MatchTable:
    """Match anew with a range of area in square pixels, ends included; see `AREA_RANGES`.

    Objects outside are ignored, and so are detections outside that match none.
    """
    low, high = area_range
    gt_ignored = table.gt_crowd | (table.gt_area < low) | (table.gt_area > high)
    matched = _greedy(table, gt_ignored)
    det_ignored = np.repeat(
        ((table.det_area < low) | (table.det_area > high))[None], len(matched), axis=0
    )
    hit = matched >= 0
    det_ignored[hit] = gt_ignored[matched[hit]]
    return replace(table, gt_ignored=gt_ignored, matched=matched, det_ignored=det_ignored)


def with_labels(table: MatchTable, labels: np.ndarray) -> MatchTable:
    """Match anew, for all areas, with other classes of the detections: labels (D,) int64.

    `best_iou_same` stays as it was. The limit of detections per image and class is not applied.
    """
    order = np.lexsort((table.det_image, -table.det_score, labels))
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    detections = places[table.pairs.detections]
    pairs = table.pairs._replace(detections=detections)
    moved = replace(
        table,
        det_image=table.det_image[order],
        det_label=labels[order],
        det_score=table.det_score[order],
        det_box=table.det_box[order],
        det_area=table.det_area[order],
        det_row=table.det_row[order],
        best_iou_same=table.best_iou_same[order],
        best_iou_any=table.best_iou_any[order],
        best_any_gt=table.best_any_gt[order],
        pairs=pairs.of(np.lexsort((pairs.objects, detections))),
    )
    return match_in_range(moved, AREA_RANGES["all"])


def average_precision(table: MatchTable) -> np.ndarray:
    """Return pycocotools' AP of each threshold and class: (T, K), NaN for one without objects."""
    num_objects, is_true, slices = table.num_objects, table.is_true, table.class_slices
    result = np.full((len(table.iou_thresholds), len(slices)), np.nan)
    for label in np.flatnonzero(num_objects).tolist():
        own = slices[label]
        for t in range(len(result)):
            counted = ~table.det_ignored[t, own]
            right = is_true[t, own][counted]
            result[t, label] = interpolated_ap(right, int(num_objects[label]))
    return result


def ap_by_class(
    labels: np.ndarray, scores: np.ndarray, is_true: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """Return the AP of each class at one threshold: (K,), NaN for one without objects.

    Args:
        labels: (N,) of the detections, without ignored ones, in any order.
        scores: (N,).
        is_true: (N,) bool.
        num_objects: (K,).
    """
    order = np.lexsort((-scores, labels))
    right = is_true[order]
    ends = np.searchsorted(labels[order], np.arange(len(num_objects) + 1)).tolist()
    numbers = [
        interpolated_ap(right[start:end], count) if count else np.nan
        for (start, end), count in zip(itertools.pairwise(ends), num_objects.tolist(), strict=True)
    ]
    return np.array(numbers)


def interpolated_ap(is_true: np.ndarray, num_objects: int) -> float:
    """Return the mean over 101 recalls of the best precision at that recall or above.

    Args:
        is_true: (N,) bool, by falling score, without ignored detections; N may be 0.
        num_objects: at least 1.
    """
    # Precision falls at wrong detections, so its maxima are at right ones.
    places = np.flatnonzero(is_true)
    count = np.arange(1, len(places) + 1)
    best = np.maximum.accumulate((count / (places + 1))[::-1])[::-1]
    reached = np.searchsorted(count / num_objects, RECALLS)  # len(places): never reached
    return float(np.append(best, 0.0)[reached].mean())


def _kept_rows(
    found: DetectionTable, image_ids: np.ndarray, category_ids: np.ndarray
) -> np.ndarray:
    """Return the rows of the detections that COCO takes, in `MatchTable`'s order: (D,) int64."""
    rows = np.flatnonzero(np.isin(found.image_ids, image_ids))
    images = np.searchsorted(image_ids, found.image_ids[rows])
    labels = np.searchsorted(category_ids, found.category_ids[rows])
    scores = found.scores[rows]
    # lexsort sorts by its last key first, and keeps the order of equal rows
    by_image = np.lexsort((-scores, images, labels))
    group = labels[by_image] * len(image_ids) + images[by_image]
    kept = by_image[_ranks(group) < MAX_DETECTIONS]
    order = kept[np.lexsort((images[kept], -scores[kept], labels[kept]))]
    result: np.ndarray = rows[order]
    return result


def _ranks(groups: np.ndarray) -> np.ndarray:
    """Return 0, 1, ... within each group of equal values; `groups` (N,) is ascending."""
    ranks: np.ndarray = np.arange(len(groups)) - np.searchsorted(groups, groups)
    return ranks


def _greedy(table: MatchTable, gt_ignored: np.ndarray) -> np.ndarray:
    """Match by falling score: (T, D) int64 objects, -1 for none.

    A detection takes the free object of its class that it overlaps most, if by the threshold; of
    equal ones the last; an ignored one only if there is no other. A crowd region is always free.
    """
    thresholds = np.minimum(table.iou_thresholds, 1 - 1e-10)[:, None]  # as pycocotools
    matched = np.full((len(thresholds), len(table.det_label)), -1, np.int64)
    pairs = table.pairs
    is_near = pairs.ious >= thresholds.min()
    pairs = pairs.of(is_near & (table.det_label[pairs.detections] == table.gt_label[pairs.objects]))
    # Detections of the same image and class take turns, but these groups are independent. So the
    # loop handles the first detections of all groups at once, then the second ones, and so on.
    known, inverse = np.unique(pairs.detections, return_inverse=True)
    group = table.det_label[known] * len(table.image_ids) + table.det_image[known]
    by_group = np.argsort(group, kind="stable")
    turns = np.empty(len(known), np.int64)
    turns[by_group] = _ranks(group[by_group])
    turns = turns[inverse]
    # within a detection, in the order of its choice
    pairs_order = np.lexsort(
        (-pairs.objects, -pairs.ious, gt_ignored[pairs.objects], pairs.detections, turns)
    )
    pairs, turns = pairs.of(pairs_order), turns[pairs_order]
    taken = np.zeros((len(thresholds), len(gt_ignored)), np.bool_)
    ends = np.searchsorted(turns, np.arange(turns.max(initial=-1) + 2)).tolist()
    for start, end in itertools.pairwise(ends):
        now = pairs.of(np.arange(start, end))
        firsts = np.flatnonzero(np.diff(now.detections, prepend=-1))
        can = (now.ious >= thresholds) & ~taken[:, now.objects]
        place = np.where(can, np.arange(end - start), end - start)
        chosen = np.minimum.reduceat(place, firsts, axis=1)  # (T, detections of this turn)
        t, which = np.nonzero(chosen < end - start)
        objects = now.objects[chosen[t, which]]
        matched[t, now.detections[firsts[which]]] = objects
        taken[t, objects] = ~table.gt_crowd[objects]
    return matched
