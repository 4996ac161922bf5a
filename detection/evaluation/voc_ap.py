"""Average precision of boxes by the rules of PASCAL VOC and ILSVRC.

Boxes are xyxy with width x2 - x1, as everywhere in this project. The official tools take
coordinates as pixels, and compute widths as xmax - xmin + 1. The results are the same: a file's
first and last pixels are read as (xmin - 1, ymin - 1, xmax, ymax) (datasets/voc_to_coco.py), so
boxes have those widths and overlaps already. Adding 1 again here would be wrong.

N detections of one class by falling score, G objects of that class, P pairs of a detection and an
object of the same image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from detection.config import ApProtocol
from detection.evaluation.detection_table import DetectionTable
from detection.evaluation.ground_truth import GroundTruth
from detection.ops.boxes import box_iou, xywh_to_xyxy

TRUE_POSITIVE, NOT_COUNTED, FALSE_POSITIVE = 1, 0, -1
"""Outcome of a detection. NOT_COUNTED: it matches a difficult object and is not counted."""
VOC_IOU_THRESH = 0.5
ILSVRC_SLACK = 10
"""Pixels added to both sides of a small object in its IoU threshold.

ILSVRC, Russakovsky et al. 2015, section 4.3.
"""


class ClassBoxes(NamedTuple):
    """Boxes of one class in many images: corners (N, 4) float64 xyxy, image_ids (N,) int64."""

    corners: np.ndarray
    image_ids: np.ndarray


@dataclass(frozen=True)
class _Pairs:
    """P pairs that overlap enough, in ascending order of detection.

    detections, objects: (P,) int64 rows. iou: (P,) float64.
    """

    detections: np.ndarray
    objects: np.ndarray
    iou: np.ndarray

    def of(self, rows: np.ndarray) -> "_Pairs":
        return _Pairs(self.detections[rows], self.objects[rows], self.iou[rows])

    def best(self) -> "_Pairs":
        """Return one pair per detection: its largest IoU, and of equal ones the first object."""
        # lexsort sorts by its last key first: detection, then falling IoU, then object. The first
        # pair of each detection in this order is its best.
        order = np.lexsort((self.objects, -self.iou, self.detections))
        first = np.unique(self.detections[order], return_index=True)[1]
        return self.of(order[first])


def score_protocols(
    found: DetectionTable, ground_truth: GroundTruth, *, protocols: Sequence[ApProtocol]
) -> dict[str, float]:
    """Score boxes by the rules of other benchmarks than COCO.

    Args:
        found: boxes in the scored images only.
        ground_truth: ground truth of the scored images. Difficult objects and crowd regions count
            neither as found nor as missed, and their detections are not counted.
        protocols: the rules; may be empty, for no metrics.

    Returns:
        For each protocol `<protocol>_ap/<class>` in [0, 1], NaN for a class without objects that
        count, and `<protocol>_map`, the mean over the other classes.
    """
    scores: dict[str, dict[str, float]] = {protocol: {} for protocol in protocols}
    for category_id, name in ground_truth.names.items() if protocols else ():
        detections = _detections_of(found, category_id)
        objects, is_difficult = _objects_of(ground_truth, category_id)
        num_objects = int((~is_difficult).sum())
        for protocol in protocols:
            match = match_ilsvrc if protocol == "ilsvrc" else match_voc
            average = eleven_point_ap if protocol == "voc07" else area_ap
            scores[protocol][name] = average(match(detections, objects, is_difficult), num_objects)
    metrics = {}
    for rules, by_class in scores.items():
        known = [ap for ap in by_class.values() if not math.isnan(ap)]
        metrics[f"{rules}_map"] = float(np.mean(known)) if known else math.nan
        metrics |= {f"{rules}_ap/{name}": ap for name, ap in by_class.items()}
    return metrics


def match_voc(detections: ClassBoxes, objects: ClassBoxes, is_difficult: np.ndarray) -> np.ndarray:
    """Match detections with objects by the rules of VOC's devkit (VOCevaldet.m).

    Each detection is compared only with the object of its image that it overlaps most, if the IoU
    is at least 0.5. The first detection of an object is right and later ones are wrong, even if
    they overlap another object enough too; COCO would try that one.

    Args:
        detections: N boxes by falling score; N may be 0.
        objects: G boxes; G may be 0.
        is_difficult: (G,) bool.

    Returns:
        (N,) int8 of TRUE_POSITIVE, NOT_COUNTED and FALSE_POSITIVE.
    """
    thresholds = np.full(len(is_difficult), VOC_IOU_THRESH)
    best = _overlapping(detections, objects, thresholds).best()
    outcome = np.full(len(detections.image_ids), FALSE_POSITIVE, dtype=np.int8)
    outcome[best.detections[is_difficult[best.objects]]] = NOT_COUNTED
    plain = best.of(~is_difficult[best.objects])
    # pairs are in order of falling score, so the first pair of an object has its best detection
    first = np.unique(plain.objects, return_index=True)[1]
    outcome[plain.detections[first]] = TRUE_POSITIVE
    return outcome


def match_ilsvrc(
    detections: ClassBoxes, objects: ClassBoxes, is_difficult: np.ndarray
) -> np.ndarray:
    """Match detections with objects by the rules of ILSVRC's devkit (eval_detection.m).

    Each detection takes the object that it overlaps most among the free objects of its image. The
    minimum IoU for an object of w x h pixels is min(0.5, wh / ((w + 10) (h + 10))). Difficult
    objects, which ILSVRC does not have, are never taken. The devkit's blacklist of validation
    images, in which some classes are not scored, is not applied. Arguments and result are those of
    `match_voc`.
    """
    width, height = (objects.corners[:, 2:] - objects.corners[:, :2]).T
    slack = width * height / ((width + ILSVRC_SLACK) * (height + ILSVRC_SLACK))
    pairs = _overlapping(detections, objects, np.minimum(VOC_IOU_THRESH, slack))
    outcome = np.full(len(detections.image_ids), FALSE_POSITIVE, dtype=np.int8)
    is_taken = np.zeros(len(is_difficult), dtype=bool)
    # A detection depends on the earlier ones of its image, but images are independent. So the loop
    # handles the first detections of all images at once, then the second ones, and so on.
    turns = _turns(detections.image_ids[pairs.detections], pairs.detections)
    for turn in range(turns.max(initial=-1) + 1):
        best = pairs.of((turns == turn) & ~is_taken[pairs.objects]).best()
        outcome[best.detections] = np.where(is_difficult[best.objects], NOT_COUNTED, TRUE_POSITIVE)
        is_taken[best.objects] = ~is_difficult[best.objects]
    return outcome


def eleven_point_ap(outcome: np.ndarray, num_objects: int) -> float:
    """Return the mean over r = 0, 0.1, ... 1 of the best precision at recall >= r (VOC 2007).

    Args:
        outcome: (N,) of TRUE_POSITIVE, NOT_COUNTED and FALSE_POSITIVE by falling score.
        num_objects: number of objects that count; the result is NaN if there are none.
    """
    if not num_objects:
        return math.nan
    num_true, precision = _best_precisions(outcome)
    # The first detection with recall num_true / num_objects >= i / 10, compared as integers: 3 of
    # 10 reach a recall of 0.3, whatever 0.3 is as a float. A recall that is never reached has the
    # index N, so a precision of 0 is appended.
    reached = np.searchsorted(10 * num_true, np.arange(11) * num_objects)
    return float(np.append(precision, 0.0)[reached].mean())


def area_ap(outcome: np.ndarray, num_objects: int) -> float:
    """Return the area under the interpolated precision-recall curve (VOC 2010, ILSVRC).

    Args:
        outcome: (N,) of TRUE_POSITIVE, NOT_COUNTED and FALSE_POSITIVE by falling score.
        num_objects: number of objects that count; the result is NaN if there are none.
    """
    if not num_objects:
        return math.nan
    num_true, precision = _best_precisions(outcome)
    # recall grows by 1 / num_objects at each right detection, and nowhere else
    return float(precision[np.diff(num_true, prepend=0) > 0].sum() / num_objects)


def _best_precisions(outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the running number of right detections and the best precision from each one on.

    Both are (n,), for the n detections that count.
    """
    counted = outcome[outcome != NOT_COUNTED]
    num_true = np.cumsum(counted == TRUE_POSITIVE)
    precision = num_true / np.arange(1, len(counted) + 1)
    # running maximum from the end
    return num_true, np.maximum.accumulate(precision[::-1])[::-1]


def _overlapping(detections: ClassBoxes, objects: ClassBoxes, thresholds: np.ndarray) -> _Pairs:
    """Return the pairs of one image whose IoU is at least the object's threshold (G,)."""
    # Sort the objects by image. The objects of detection i are then the sorted positions starts[i]
    # to starts[i] + counts[i] - 1.
    order = np.argsort(objects.image_ids, kind="stable")
    ascending = objects.image_ids[order]
    starts = np.searchsorted(ascending, detections.image_ids, side="left")
    counts = np.searchsorted(ascending, detections.image_ids, side="right") - starts
    # One entry per pair. rows: its detection. within: 0, 1, ... counts[i] - 1 for detection i,
    # which is the position among all pairs minus the position of the detection's first pair.
    rows = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = order[np.repeat(starts, counts) + within]
    # IoU of P pairs of one box each: a and b are (P, 1, 4), and the result is (P, 1, 1)
    a, b = (
        torch.from_numpy(boxes.corners[idxs])[:, None]
        for boxes, idxs in ((objects, columns), (detections, rows))
    )
    iou = box_iou(a, b)[:, 0, 0].numpy()
    return _Pairs(rows, columns, iou).of(iou >= thresholds[columns])


def _turns(image_ids: np.ndarray, detections: np.ndarray) -> np.ndarray:
    """Return (P,) the rank of a pair's detection among the detections with pairs of its image."""
    # known: the detections with pairs; firsts: the first pair of each; inverse: pair -> known
    known, firsts, inverse = np.unique(detections, return_index=True, return_inverse=True)
    images = image_ids[firsts]
    order = np.argsort(images, kind="stable")
    # in the order sorted by image: own position minus the position of the image's first detection
    turns = np.empty(len(known), dtype=np.int64)
    turns[order] = np.arange(len(known)) - np.searchsorted(images[order], images[order])
    return turns[inverse]


def _detections_of(found: DetectionTable, category_id: int) -> ClassBoxes:
    """Return one category's detections by falling score; equal scores keep the table's order."""
    rows = np.flatnonzero(found.category_ids == category_id)
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    return ClassBoxes(xywh_to_xyxy(found.boxes[rows]), found.image_ids[rows])


def _objects_of(ground_truth: GroundTruth, category_id: int) -> tuple[ClassBoxes, np.ndarray]:
    """Return one category's objects, and (G,) bool, whether they are difficult or crowd regions."""
    table, rows = ground_truth.table, ground_truth.rows_of(category_id)
    boxes = ClassBoxes(xywh_to_xyxy(table.xywh[rows]), table.image_ids[rows])
    return boxes, table.is_difficult[rows] | table.is_crowd[rows]
