"""Which images, detections and objects to look at: the worst errors, and likely label errors.

I images, D detections, G objects.
"""

from dataclasses import dataclass

import numpy as np

from detection.evaluation.matching import MatchTable
from detection.evaluation.overlaps import MIN_OVERLAP, box_blocks
from detection.evaluation.score_curves import AT_HALF
from detection.ops.boxes import xyxy_to_xywh

SAME_PLACE = 0.7
"""IoU from which a detection of another class says that the annotation's class may be wrong."""
DUPLICATE = 0.85
"""IoU from which two annotations may be of one object."""


@dataclass(frozen=True)
class ImageErrors:
    """Right, wrong and missed of each image at IoU 0.5 and a score threshold: (I,) int64 each."""

    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """F1 of each image: (I,), NaN if it has neither objects nor detections."""
        whole = 2 * self.right + self.wrong + self.missed
        f1: np.ndarray = np.full(len(whole), np.nan)
        np.divide(2 * self.right, whole, out=f1, where=whole > 0)
        return f1

    def worst(self) -> np.ndarray:
        """Return the images with errors: by falling number of errors, then by rising F1."""
        errors = self.wrong + self.missed
        order = np.lexsort((np.nan_to_num(self.f1, nan=1.0), -errors))
        worst: np.ndarray = order[errors[order] > 0]
        return worst


def image_errors(table: MatchTable, *, score_thresh: float) -> ImageErrors:
    """Count right detections, wrong detections and missed objects of every image."""
    count = len(table.image_ids)
    shown = (table.det_score >= score_thresh) & ~table.det_ignored[AT_HALF]
    right = table.is_true[AT_HALF]
    images = [table.det_image[shown & right], table.det_image[shown & ~right]]
    images.append(table.gt_image[missed_objects(table, score_thresh=score_thresh)])
    return ImageErrors(*(np.bincount(each, minlength=count) for each in images))


def missed_objects(table: MatchTable, *, score_thresh: float) -> np.ndarray:
    """Return the objects without a right detection of enough score, the largest first."""
    missed = ~table.gt_ignored
    hits = table.matched[AT_HALF][table.det_score >= score_thresh]
    missed[hits[hits >= 0]] = False
    rows = np.flatnonzero(missed)
    return rows[np.argsort(-table.gt_area[rows], kind="stable")]


def false_positives(table: MatchTable, *, score_thresh: float) -> np.ndarray:
    """Return the wrong detections at IoU 0.5, by falling score."""
    wrong = (table.matched[AT_HALF] < 0) & ~table.det_ignored[AT_HALF]
    rows = np.flatnonzero(wrong & (table.det_score >= score_thresh))
    return rows[np.argsort(-table.det_score[rows], kind="stable")]


@dataclass(frozen=True)
class LabelErrors:
    """Annotations that are worth a look; the most likely errors first.

    missing: detections of at least the score threshold that overlap no annotation: an object
    without one. other_class: detections at an annotation of another class. duplicates: (n, 2)
    objects that overlap nearly fully, the smaller row first. unseen: objects that no detection of
    any class or score overlaps.
    """

    missing: np.ndarray
    other_class: np.ndarray
    duplicates: np.ndarray
    unseen: np.ndarray


def label_errors(table: MatchTable, *, score_thresh: float) -> LabelErrors:
    """Find likely label errors from detections with at least a score, and from annotations."""
    confident = false_positives(table, score_thresh=score_thresh)
    alone = table.best_iou_any[confident] < MIN_OVERLAP
    # the largest IoU is with an object of another class, and none of its own is there
    other = (table.best_iou_any[confident] >= SAME_PLACE) & (table.best_iou_same[confident] < 0.5)
    near = np.zeros(len(table.gt_label), np.bool_)
    near[table.pairs.objects] = True
    unseen = np.flatnonzero(~near & ~table.gt_crowd)
    return LabelErrors(
        # a detection on a crowd region of another class has an IoU with no plain object
        missing=_without_crowds(table, confident[alone]),
        other_class=confident[other],
        duplicates=_duplicates(table),
        unseen=unseen[np.argsort(-table.gt_area[unseen], kind="stable")],
    )


def _without_crowds(table: MatchTable, rows: np.ndarray) -> np.ndarray:
    """Return the detections that no crowd region of any class covers by half."""
    pairs = table.pairs
    covered = pairs.detections[(pairs.ious >= 0.5) & table.gt_crowd[pairs.objects]]
    kept: np.ndarray = rows[~np.isin(rows, covered)]
    return kept


def _duplicates(table: MatchTable) -> np.ndarray:
    plain = np.flatnonzero(~table.gt_crowd)
    own = xyxy_to_xywh(table.gt_box[plain]), table.gt_image[plain]
    found, overlaps = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for rows, counts, objects, ious in box_blocks(*own, *own, crowd=np.zeros(len(plain), np.bool_)):
        first = np.repeat(rows, counts)
        keep = (ious >= DUPLICATE) & (first < objects)
        found.append(np.stack([plain[first[keep]], plain[objects[keep]]], axis=1))
        overlaps.append(ious[keep])
    pairs: np.ndarray = np.concatenate(found)
    return pairs[np.argsort(-np.concatenate(overlaps), kind="stable")]
