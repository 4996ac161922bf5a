"""Precision, recall and F1 over the score threshold, at IoU 0.5, and the best threshold of a class.

N detections, K classes.
"""

import math
from dataclasses import dataclass

import numpy as np

from detection.evaluation.matching import MatchTable

GRID = np.linspace(0, 1, 101)
"""Score thresholds at which a curve is given."""
AT_HALF = 0
"""Index of IoU 0.5 in `MatchTable.iou_thresholds`."""


@dataclass(frozen=True)
class ScoreCurve:
    """Precision, recall and F1 of the detections with at least some score.

    precision, recall, f1: one for each threshold of `GRID`; precision is NaN where no detection is
    left, and recall and F1 are NaN if there are no objects. best_thresh, best_f1: the score
    threshold with the highest F1, the larger one of equal ones; NaN if nothing is right.
    best_precision, best_recall: there.
    """

    num_objects: int
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best_thresh: float
    best_f1: float
    best_precision: float
    best_recall: float


def score_curve(scores: np.ndarray, is_true: np.ndarray, *, num_objects: int) -> ScoreCurve:
    """Return the curve of detections of one class, or of all.

    Args:
        scores: (N,) in any order; N may be 0.
        is_true: (N,) bool, whether each detection is right.
        num_objects: number of objects that count; may be 0.
    """
    order = np.argsort(-scores, kind="stable")
    falling, true = scores[order], np.cumsum(is_true[order])
    # number of detections with at least the threshold, and of right ones among them
    count = np.searchsorted(-falling, -GRID, side="right")
    right = np.append(0, true)[count]
    # after each detection that is the last one with its score
    ends = np.flatnonzero(np.diff(falling, append=-np.inf))
    f1 = _f1(true[ends], ends + 1, num_objects)
    best = int(np.argmax(f1)) if len(ends) and f1.max() > 0 else None
    end = None if best is None else int(ends[best])
    return ScoreCurve(
        num_objects=num_objects,
        precision=_ratio(right, count),
        recall=_ratio(right, np.full(len(GRID), num_objects)),
        f1=_f1(right, count, num_objects),
        best_thresh=math.nan if end is None else float(falling[end]),
        best_f1=math.nan if best is None else float(f1[best]),
        best_precision=math.nan if end is None else float(true[end] / (end + 1)),
        best_recall=math.nan if end is None else float(true[end] / num_objects),
    )


def class_curves(table: MatchTable) -> list[ScoreCurve]:
    """Return the curve of each of the K classes."""
    counted, is_true, objects = ~table.det_ignored[AT_HALF], table.is_true[AT_HALF], []
    for own, num_objects in zip(table.class_slices, table.num_objects.tolist(), strict=True):
        keep = counted[own]
        objects.append(
            score_curve(table.det_score[own][keep], is_true[own][keep], num_objects=num_objects)
        )
    return objects


def pooled_curve(table: MatchTable) -> ScoreCurve:
    """Return the curve of the detections of all classes together."""
    keep = ~table.det_ignored[AT_HALF]
    return score_curve(
        table.det_score[keep],
        table.is_true[AT_HALF][keep],
        num_objects=int(table.num_objects.sum()),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return shares


def _f1(right: np.ndarray, count: np.ndarray, num_objects: int) -> np.ndarray:
    """Return 2 right / (detections + objects), NaN if there are no objects."""
    if not num_objects:
        return np.full(len(right), np.nan)
    f1: np.ndarray = 2 * right / (count + num_objects)
    return f1
