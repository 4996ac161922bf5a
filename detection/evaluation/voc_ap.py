"""Average precision of boxes as PASCAL VOC and ILSVRC take it, beside COCO's.

Boxes are xyxy with width x2 - x1, as everywhere here. The contests' own tools take a corner for the
pixel that it lies in, and a width for xmax - xmin + 1. The two agree: a file's first and last pixel
are read as (xmin - 1, ymin - 1, xmax, ymax) (data/voc_to_coco.py), and those boxes have just that
width and just those overlaps. Here one more pixel would be counted twice.

N detections of one class by falling score, G objects of that class, P pairs of a detection and an
object of its image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from detection.config import Protocol
from detection.data.box_checks import corners_of
from detection.evaluation.detection_table import DetectionTable
from detection.evaluation.ground_truth import GroundTruth
from detection.ops.boxes import box_iou

RIGHT, NEITHER, WRONG = 1, 0, -1
"""What a detection is worth; NEITHER: it found a difficult object, and counts in nothing."""
VOC_IOU_THRESH = 0.5
ILSVRC_SLACK = 10
"""Pixels by which small objects may be missed (ILSVRC, Russakovsky et al. 2015, section 4.3)."""


class Boxes(NamedTuple):
    """Boxes of one class in many images: corners (N, 4) float64 xyxy, image_ids (N,) int64."""

    corners: np.ndarray
    image_ids: np.ndarray


@dataclass(frozen=True)
class _Pairs:
    """P pairs that overlap enough, by rising detection: rows and IoU, (P,) each."""

    detections: np.ndarray
    objects: np.ndarray
    iou: np.ndarray

    def of(self, rows: np.ndarray) -> "_Pairs":
        return _Pairs(self.detections[rows], self.objects[rows], self.iou[rows])

    def best(self) -> "_Pairs":
        """Keep each detection's largest overlap; of equal ones, the first object."""
        order = np.lexsort((self.objects, -self.iou, self.detections))
        first = np.unique(self.detections[order], return_index=True)[1]
        return self.of(order[first])


def score_protocols(
    found: DetectionTable, ground_truth: GroundTruth, *, protocols: Sequence[Protocol]
) -> dict[str, float]:
    """Score boxes by the rules of other contests.

    Args:
        found: the boxes, of the scored images alone.
        ground_truth: of the scored images. Objects that are difficult, and crowd regions, are
            neither to be found nor wrong to find.
        protocols: which rules; none gives no metrics.

    Returns:
        For each protocol `<protocol>_ap/<class>` in [0, 1], NaN for a class without an object to
        be found, and `<protocol>_map`, the mean over the other classes.
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


def match_voc(detections: Boxes, objects: Boxes, is_difficult: np.ndarray) -> np.ndarray:
    """Judge detections as VOC's devkit (VOCevaldet.m) does.

    Each detection is held against the object of its image that it overlaps most, from IoU 0.5
    on. The first to come to an object is right and the later ones are wrong, though another object
    may be near: here VOC differs from COCO.

    Args:
        detections: N boxes by falling score; N may be 0.
        objects: G boxes; G may be 0.
        is_difficult: (G,) bool.

    Returns:
        (N,) int8 of RIGHT, NEITHER and WRONG.
    """
    thresholds = np.full(len(is_difficult), VOC_IOU_THRESH)
    best = _overlapping(detections, objects, thresholds).best()
    outcome = np.full(len(detections.image_ids), WRONG, dtype=np.int8)
    outcome[best.detections[is_difficult[best.objects]]] = NEITHER
    plain = best.of(~is_difficult[best.objects])
    first = np.unique(plain.objects, return_index=True)[1]
    outcome[plain.detections[first]] = RIGHT
    return outcome


def match_ilsvrc(detections: Boxes, objects: Boxes, is_difficult: np.ndarray) -> np.ndarray:
    """Judge detections as ILSVRC's devkit (eval_detection.m) does; see `match_voc`.

    Each detection takes the object that it overlaps most among those of its image that are not
    taken, from IoU min(0.5, wh / ((w + 10) (h + 10))) of an object of w x h on. A difficult object,
    of which ILSVRC has none, is never taken. The devkit's list of images in which a class is not
    judged (the validation blacklist) is not applied.
    """
    width, height = (objects.corners[:, 2:] - objects.corners[:, :2]).T
    slack = width * height / ((width + ILSVRC_SLACK) * (height + ILSVRC_SLACK))
    pairs = _overlapping(detections, objects, np.minimum(VOC_IOU_THRESH, slack))
    outcome = np.full(len(detections.image_ids), WRONG, dtype=np.int8)
    is_taken = np.zeros(len(is_difficult), dtype=bool)
    # images do not touch each other: the first detections of all of them, then the second ...
    turns = _turns(detections.image_ids[pairs.detections], pairs.detections)
    for turn in range(turns.max(initial=-1) + 1):
        best = pairs.of((turns == turn) & ~is_taken[pairs.objects]).best()
        outcome[best.detections] = np.where(is_difficult[best.objects], NEITHER, RIGHT)
        is_taken[best.objects] = ~is_difficult[best.objects]
    return outcome


def eleven_point_ap(outcome: np.ndarray, num_objects: int) -> float:
    """Return the mean over recall 0, 0.1, ... 1 of the best precision from there on (VOC 2007).

    Args:
        outcome: (N,) of RIGHT, NEITHER and WRONG by falling score.
        num_objects: objects to be found; with none the result is NaN.
    """
    if not num_objects:
        return math.nan
    num_right, precision = _best_precisions(outcome)
    # in whole numbers: 3 of 10 reach a recall of 0.3, whatever 0.3 is as a float
    reached = np.searchsorted(10 * num_right, np.arange(11) * num_objects)
    return float(np.append(precision, 0.0)[reached].mean())


def area_ap(outcome: np.ndarray, num_objects: int) -> float:
    """Return the area below the best precision from each recall on (VOC 2010 to 2012, ILSVRC).

    Args:
        outcome: (N,) of RIGHT, NEITHER and WRONG by falling score.
        num_objects: objects to be found; with none the result is NaN.
    """
    if not num_objects:
        return math.nan
    num_right, precision = _best_precisions(outcome)
    return float(precision[np.diff(num_right, prepend=0) > 0].sum() / num_objects)


def _best_precisions(outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return right ones so far and the best precision from here on, for each that counts."""
    counted = outcome[outcome != NEITHER]
    num_right = np.cumsum(counted == RIGHT)
    precision = num_right / np.arange(1, len(counted) + 1)
    return num_right, np.maximum.accumulate(precision[::-1])[::-1]


def _overlapping(detections: Boxes, objects: Boxes, thresholds: np.ndarray) -> _Pairs:
    """Return the pairs within an image whose IoU is at least the object's of `thresholds` (G,)."""
    order = np.argsort(objects.image_ids, kind="stable")
    ascending = objects.image_ids[order]
    starts = np.searchsorted(ascending, detections.image_ids, side="left")
    counts = np.searchsorted(ascending, detections.image_ids, side="right") - starts
    rows = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = order[np.repeat(starts, counts) + within]
    a, b = (
        torch.from_numpy(boxes.corners[idxs])[:, None]
        for boxes, idxs in ((objects, columns), (detections, rows))
    )
    iou = box_iou(a, b)[:, 0, 0].numpy()
    return _Pairs(rows, columns, iou).of(iou >= thresholds[columns])


def _turns(image_ids: np.ndarray, detections: np.ndarray) -> np.ndarray:
    """Return (P,) the place of each pair's detection among those of its image that have pairs."""
    known, firsts, inverse = np.unique(detections, return_index=True, return_inverse=True)
    images = image_ids[firsts]
    order = np.argsort(images, kind="stable")
    turns = np.empty(len(known), dtype=np.int64)
    turns[order] = np.arange(len(known)) - np.searchsorted(images[order], images[order])
    return turns[inverse]


def _detections_of(found: DetectionTable, category_id: int) -> Boxes:
    """Return one category's detections by falling score, equal ones in the order given."""
    rows = np.flatnonzero(found.category_ids == category_id)
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    return Boxes(corners_of(found.boxes[rows]), found.image_ids[rows])


def _objects_of(ground_truth: GroundTruth, category_id: int) -> tuple[Boxes, np.ndarray]:
    """Return one category's objects, and (G,) bool whether they are difficult or crowds."""
    table, rows = ground_truth.table, ground_truth.rows_of(category_id)
    boxes = Boxes(corners_of(table.xywh[rows]), table.image_ids[rows])
    return boxes, table.is_difficult[rows] | table.is_crowd[rows]
