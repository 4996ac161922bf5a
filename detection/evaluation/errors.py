"""TIDE's errors: why detections are wrong, and how much AP each kind of error costs.

Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors", and its
package tidecv, at an IoU of 0.5. Matching and the mean over classes are COCO's here, as in hotcoco.

D detections, G objects, K classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from detection.evaluation.matching import MatchTable, ap_by_class
from detection.evaluation.overlaps import MIN_OVERLAP, best_of

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, MIN_OVERLAP
WRONG = {
    "localization": "right class, but an IoU of 0.1 to 0.5 with the object",
    "classification": "an IoU of 0.5 or more with an object of another class",
    "duplicate": "right, but the object has a detection with a higher score",
    "background": "an IoU of 0.1 or less with every object",
    "both": "an IoU of 0.1 to 0.5 with an object of another class",
}
"""Why a detection is wrong; of several reasons the first one counts."""
KINDS = {
    **WRONG,
    "missed": "an object that no detection has, nor would have with another box or class",
    "false_positive": "all wrong detections",
    "false_negative": "all objects without a detection",
}


@dataclass(frozen=True)
class TideErrors:
    """The errors of a run.

    kind: (D,) int64 position in `WRONG`, -1 for right or ignored detections. target: (D,) int64
    the object that a localization or classification error is about, -1 for others. missed: (G,)
    bool. counts: detections, or objects, with each error of `KINDS`. ap: (K,) at an IoU of 0.5, NaN
    for a class without objects. mended: for each of `KINDS`, the AP without these errors, (K,).
    """

    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray
    counts: Mapping[str, int]
    ap: np.ndarray
    mended: Mapping[str, np.ndarray]

    def lost_ap(self) -> dict[str, float]:
        """Return how much higher the mean AP is without each error; NaN if there are no objects.

        The mean is over the classes that have objects, as COCO's. A class that has none left after
        mending, because all were missed, gains nothing.
        """
        known = ~np.isnan(self.ap)
        if not known.any():
            return dict.fromkeys(KINDS, math.nan)
        gains = {name: np.nan_to_num(self.mended[name]) - self.ap for name in KINDS}
        return {name: float(gain[known].mean()) for name, gain in gains.items()}


def tide_errors(table: MatchTable) -> TideErrors:
    """Find the error of each wrong detection and each missed object, and mend each kind.

    Mending, as in the paper: of the localization or classification errors about an object without a
    detection, the one with the highest score becomes right; their others, duplicates, background
    and both are dropped; missed objects do not count any more.
    """
    assert table.iou_thresholds[0] == FOREGROUND_IOU
    is_true, ignored = table.is_true[0], table.det_ignored[0]
    is_wrong = ~is_true & ~ignored
    has_detection = np.zeros(len(table.gt_label), np.bool_)
    has_detection[table.matched[0][is_true]] = True
    kind, target = _kinds(table, is_wrong)
    wins = _winners(table, target, has_detection)
    lost = ~has_detection & ~table.gt_ignored
    missed = lost.copy()
    missed[target[target >= 0]] = False

    plain = _Mended(table.det_label, ~ignored, is_true, table.num_objects)
    cases = {}
    for position, name in enumerate(WRONG):
        mends = wins & (kind == position)  # only those with a target win
        cases[name] = plain._replace(
            labels=_relabelled(table, np.where(mends, target, -1)),
            keep=~ignored & ((kind != position) | mends),
            right=is_true | mends,
        )
    for name, objects in (("missed", missed), ("false_negative", lost)):
        fewer = np.bincount(table.gt_label[objects], minlength=len(table.names))
        cases[name] = plain._replace(num_objects=table.num_objects - fewer)
    cases["false_positive"] = plain._replace(keep=is_true)
    counts = {name: int((kind == position).sum()) for position, name in enumerate(WRONG)}
    counts |= {
        "missed": int(missed.sum()),
        "false_positive": int(is_wrong.sum()),
        "false_negative": int(lost.sum()),
    }
    return TideErrors(
        kind=kind,
        target=target,
        missed=missed,
        counts=counts,
        ap=plain.ap(table.det_score),
        mended={name: cases[name].ap(table.det_score) for name in KINDS},
    )


def errors_as_dict(errors: TideErrors) -> dict[str, Any]:
    """Return the numbers for JSON, null for NaN."""
    lost = errors.lost_ap()
    return {
        "iou_threshold": FOREGROUND_IOU,
        "background_iou": BACKGROUND_IOU,
        "ap50": _number(_mean(errors.ap)),
        "errors": {
            name: {
                "meaning": meaning,
                "count": errors.counts[name],
                "lost_ap": _number(lost[name]),
                "mended_ap_by_class": [_number(x) for x in errors.mended[name].tolist()],
            }
            for name, meaning in KINDS.items()
        },
    }


class _Mended(NamedTuple):
    """Detections and objects after mending.

    labels: (D,) int64. keep, right: (D,) bool; others are dropped. num_objects: (K,).
    """

    labels: np.ndarray
    keep: np.ndarray
    right: np.ndarray
    num_objects: np.ndarray

    def ap(self, scores: np.ndarray) -> np.ndarray:
        """Return the AP of each class: (K,), NaN for one without objects."""
        kept = self.keep
        return ap_by_class(self.labels[kept], scores[kept], self.right[kept], self.num_objects)


def _kinds(table: MatchTable, is_wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `TideErrors`' kind and target."""
    pairs = table.pairs.of(~table.gt_crowd[table.pairs.objects])
    is_same = table.det_label[pairs.detections] == table.gt_label[pairs.objects]
    same, of_same = best_of(pairs.of(is_same), len(is_wrong))
    other, of_other = best_of(pairs.of(~is_same), len(is_wrong))
    reasons = {
        "localization": (same >= BACKGROUND_IOU) & (same <= FOREGROUND_IOU),
        "classification": other >= FOREGROUND_IOU,
        "duplicate": same > FOREGROUND_IOU,  # and wrong, so the object was taken
        "background": np.maximum(same, other) <= BACKGROUND_IOU,
        "both": np.ones(len(is_wrong), np.bool_),
    }
    first = np.argmax(np.stack([reasons[name] for name in WRONG]), axis=0)
    kind = np.where(is_wrong, first, -1)
    target = np.select([kind == 0, kind == 1], [of_same, of_other], -1)
    return kind, target


def _relabelled(table: MatchTable, objects: np.ndarray) -> np.ndarray:
    """Return (D,) labels: those of objects (D,), or of the detection where that is -1."""
    labels, rows = table.det_label.copy(), np.flatnonzero(objects >= 0)
    labels[rows] = table.gt_label[objects[rows]]
    return labels


def _winners(table: MatchTable, target: np.ndarray, has_detection: np.ndarray) -> np.ndarray:
    """Return (D,) bool, whether a detection has the highest score for an object without one."""
    rows = np.flatnonzero(target >= 0)
    rows = rows[~has_detection[target[rows]]]
    rows = rows[np.lexsort((table.det_row[rows], -table.det_score[rows]))]
    wins = np.zeros(len(target), np.bool_)
    wins[rows[np.unique(target[rows], return_index=True)[1]]] = True
    return wins


def _mean(ap: np.ndarray) -> float:
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if len(known) else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
