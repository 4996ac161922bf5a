"""Oracle ladder: the AP of a run when its mistakes are mended one after the other, to the top.

Each rung keeps what the rungs before it mended, so the gaps between them add up to 1.

D detections, K classes.
"""

from typing import Any, NamedTuple

import numpy as np

from detection.evaluation.matching import MatchTable, ap_by_class, average_precision, with_labels
from detection.evaluation.overlaps import best_of

RUNGS = {
    "as it is": "the run's own AP",
    "class": "a detection that overlaps an object of another class by an IoU of 0.5 or more, but "
    "none of its own class, gets the class of the object that it overlaps most",
    "box": "a detection that overlaps an object of its class by an IoU of 0.1 or more gets the "
    "object's box",
    "duplicates": "only the detection with the highest score is kept of each object, a perfect NMS",
    "score order": "all right detections have higher scores than the others, which are background",
    "missed objects": "all objects without a detection are found",
}


class Rung(NamedTuple):
    """Mean AP over IoU 0.50 to 0.95, and at 0.5; NaN if there are no objects."""

    name: str
    meaning: str
    ap: float
    ap50: float


def oracle_ladder(table: MatchTable) -> tuple[Rung, ...]:
    """Return the rungs in the order of `RUNGS`.

    Class and box come first, because NMS and the order of scores depend on them: were the order
    perfect from the start, duplicates would cost nothing.
    """
    curves = [average_precision(table)]  # (T, K), or (1, K) where all thresholds are equal
    is_other = (table.best_iou_same < 0.5) & (table.best_iou_any >= 0.5)
    labels = table.det_label.copy()
    labels[is_other] = table.gt_label[table.best_any_gt[is_other]]
    table = with_labels(table, labels)
    curves.append(average_precision(table))

    objects = _objects(table)
    keep = (objects >= 0) | ~table.det_ignored[0]
    is_first = _is_first(table, objects)
    for kept in (keep, keep & (is_first | (objects < 0)), is_first):
        own = (table.det_label[kept], table.det_score[kept], is_first[kept])
        curves.append(ap_by_class(*own, table.num_objects)[None])
    curves.append(np.where(table.num_objects > 0, 1.0, np.nan)[None])
    return tuple(
        Rung(name, meaning, _mean(curve.mean(axis=0)), _mean(curve[0]))
        for (name, meaning), curve in zip(RUNGS.items(), curves, strict=True)
    )


def ladder_as_dict(rungs: tuple[Rung, ...]) -> list[dict[str, Any]]:
    """Return the rungs for JSON, null for NaN."""
    return [
        {key: None if value != value else value for key, value in rung._asdict().items()}
        for rung in rungs
    ]


def _objects(table: MatchTable) -> np.ndarray:
    """Return the object whose box each detection gets: (D,) int64, -1 for none.

    It is the matched one, or else that with the largest IoU.
    """
    detections, objects, _ = table.pairs
    is_own = table.det_label[detections] == table.gt_label[objects]
    _, nearest = best_of(table.pairs.of(is_own & ~table.gt_ignored[objects]), len(table.det_label))
    return np.where(table.is_true[0], table.matched[0], nearest)


def _is_first(table: MatchTable, objects: np.ndarray) -> np.ndarray:
    """Return (D,) bool, whether a detection has the highest score of those of its object."""
    rows = np.flatnonzero(objects >= 0)  # by falling score within a class, so within an object
    first = np.zeros(len(objects), np.bool_)
    first[rows[np.unique(objects[rows], return_index=True)[1]]] = True
    return first


def _mean(ap: np.ndarray) -> float:
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if len(known) else float("nan")
