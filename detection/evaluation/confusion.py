"""Confusion among classes and with background, of detections at one score threshold.

K classes, P pairs of a detection and an object.
"""

from dataclasses import dataclass

import numpy as np

from detection.evaluation.matching import MatchTable
from detection.evaluation.overlaps import Pairs


@dataclass(frozen=True)
class Confusion:
    """Counts of objects and detections by class.

    matrix: (K + 1, K + 1) int64, annotated class by predicted class. The last column counts missed
    objects, the last row detections of background; their common cell is 0. objects, detections:
    (K,) those that count. score_thresh, iou_thresh: the thresholds.
    """

    matrix: np.ndarray
    score_thresh: float
    iou_thresh: float

    def worst(self, count: int) -> list[tuple[int, int, int]]:
        """Return (annotated, predicted, number) of the most frequent errors, at most `count`."""
        errors = self.matrix.copy()
        np.fill_diagonal(errors, 0)
        places = np.argsort(-errors, axis=None, kind="stable")[:count]
        rows, columns = np.unravel_index(places, errors.shape)
        cells = zip(rows.tolist(), columns.tolist(), strict=True)
        return [(i, j, int(errors[i, j])) for i, j in cells if errors[i, j]]


def confusion(table: MatchTable, *, score_thresh: float, iou_thresh: float = 0.5) -> Confusion:
    """Match detections with objects of any class, one to one, and count the pairs by class.

    Pairs of the same class come first, then the others, both by falling IoU. So an object that is
    found is never taken by a detection of another class. Detections in a crowd region of their
    class are not counted, and crowd regions are not.

    Args:
        table: the detections and objects.
        score_thresh: detections with a lower score are dropped.
        iou_thresh: least IoU of a pair, at least `MIN_OVERLAP`.
    """
    num_classes = len(table.names)
    pairs = table.pairs
    pairs = pairs.of(
        (pairs.ious >= iou_thresh) & (table.det_score[pairs.detections] >= score_thresh)
    )
    is_same = table.det_label[pairs.detections] == table.gt_label[pairs.objects]
    is_crowd = table.gt_crowd[pairs.objects]
    in_crowd = np.zeros(len(table.det_label), np.bool_)
    in_crowd[pairs.detections[is_same & is_crowd]] = True
    plain = pairs.of(~is_crowd)
    matched = one_to_one(plain, np.lexsort((-plain.ious, ~is_same[~is_crowd])))
    cells = [(table.gt_label[matched.objects], table.det_label[matched.detections])]
    missed = ~table.gt_crowd
    missed[matched.objects] = False
    cells.append((table.gt_label[missed], np.full(missed.sum(), num_classes)))
    extra = (table.det_score >= score_thresh) & ~in_crowd
    extra[matched.detections] = False
    cells.append((np.full(extra.sum(), num_classes), table.det_label[extra]))
    rows, columns = (np.concatenate(each) for each in zip(*cells, strict=True))
    side = num_classes + 1
    matrix = np.bincount(rows * side + columns, minlength=side**2).reshape(side, side)
    return Confusion(matrix, score_thresh, iou_thresh)


def one_to_one(pairs: Pairs, order: np.ndarray) -> Pairs:
    """Take pairs in an order, each unless its detection or its object is taken already.

    Args:
        pairs: P pairs; P may be 0.
        order: (P,) all pairs, the first choice first.
    """
    waiting, taken = pairs.of(order), []
    # A pair that comes first for its detection and for its object is taken, whatever the others
    # do. So a few rounds over all pairs give the result of a loop over single pairs.
    while len(waiting.detections):
        firsts = np.zeros(len(waiting.detections), np.int64)
        for column in (waiting.detections, waiting.objects):
            firsts[np.unique(column, return_index=True)[1]] += 1
        now = waiting.of(firsts == 2)
        taken.append(now)
        waiting = waiting.of(
            ~np.isin(waiting.detections, now.detections) & ~np.isin(waiting.objects, now.objects)
        )
    if not taken:
        return pairs
    return Pairs(*(np.concatenate(column) for column in zip(*taken, strict=True)))
