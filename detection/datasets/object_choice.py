"""Choice of objects to look at: random ones of a class, or the strangest.

M objects, K classes. The side of an object is the square root of its box's area, its aspect is
width / height. Both are compared within a class as logarithms, for twice and half the usual size to
count the same.
"""

from dataclasses import dataclass

import numpy as np

from detection.data.coco import Annotations
from detection.datasets.box_outliers import near_pairs, robust_deviations

TINY_SIDE = 4.0
"""Pixels; smaller objects are rarely meant."""
FLAGGED_DEVIATION = 6.0
"""Rank of near-duplicates and tiny objects among deviations from the class."""
_LEAST_DEVIATION = 0.074
"""Of logarithms, 7 %: classes whose objects are all alike have no useful spread."""


@dataclass(frozen=True)
class ChosenObject:
    """An object (its row in `Annotations`) and what is said about it."""

    row: int
    reason: str


@dataclass(frozen=True)
class Strangeness:
    """How far objects are from their class; all arrays are (M,).

    sides: pixels. aspects: width / height. side_deviation, aspect_deviation: robust standard
    deviations from the class's median (`robust_deviations`). twin: the row of an earlier object of
    which this one is a near-duplicate, -1 for none. twin_iou: their IoU, 0 for none.
    """

    sides: np.ndarray
    aspects: np.ndarray
    side_deviation: np.ndarray
    aspect_deviation: np.ndarray
    twin: np.ndarray
    twin_iou: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """(M,) how strange each object is; near-duplicates and tiny ones have at least 6."""
        is_flagged = (self.twin >= 0) | (self.sides < TINY_SIDE)
        rank: np.ndarray = np.maximum.reduce(
            [
                np.abs(self.side_deviation),
                np.abs(self.aspect_deviation),
                np.where(is_flagged, FLAGGED_DEVIATION + self.twin_iou, 0.0),
            ]
        )
        return rank


def strangeness_of(annotations: Annotations) -> Strangeness:
    """Compare each object with its class; crowd regions, which hold many, have deviation 0."""
    width, height = (annotations.boxes[:, 2:] - annotations.boxes[:, :2]).astype(np.float64).T
    sides, aspects = np.sqrt(width * height), width / height
    groups = np.where(annotations.is_crowd, -1, annotations.labels)
    twin, twin_iou = near_duplicates(annotations)
    return Strangeness(
        sides=sides,
        aspects=aspects,
        side_deviation=_deviations(sides, groups),
        aspect_deviation=_deviations(aspects, groups),
        twin=twin,
        twin_iou=twin_iou,
    )


def _deviations(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return robust_deviations(np.log(values), groups, least=_LEAST_DEVIATION)[0]


def near_duplicates(annotations: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """Find objects that repeat an earlier one of the same image and class, but for some pixels.

    Returns:
        (M,) int64 row of the earlier object, -1 for none, and (M,) float64 IoU, 0 for none.
    """
    count = len(annotations.boxes)
    twin, best = np.full(count, -1), np.zeros(count)
    rows = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    objects = np.flatnonzero(~annotations.is_crowd)
    groups = (rows * len(annotations.classes) + annotations.labels)[objects]
    later, earlier, iou = near_pairs(groups, annotations.boxes[objects])
    # of several earlier ones the last written stays: that with the largest IoU
    order = np.argsort(iou, kind="stable")
    twin[objects[later[order]]] = objects[earlier[order]]
    best[objects[later[order]]] = iou[order]
    return twin, best


def random_objects(
    annotations: Annotations, label: int, count: int, *, seed: int
) -> list[ChosenObject]:
    """Return up to `count` random objects of a class, in order of the file."""
    rows = np.flatnonzero(annotations.labels == label)
    rng = np.random.default_rng([seed, label])  # a class's choice does not depend on the others
    if len(rows) > count:
        rows = np.sort(rng.choice(rows, count, replace=False))
    return [ChosenObject(row, _size_of(annotations, row)) for row in rows.tolist()]


def strangest_objects(
    annotations: Annotations, label: int, count: int, *, strangeness: Strangeness
) -> list[ChosenObject]:
    """Return up to `count` objects of a class, the strangest first, each with what is strange."""
    rows = np.flatnonzero((annotations.labels == label) & ~annotations.is_crowd)
    per_object = strangeness.sides, strangeness.aspects
    medians = [float(np.median(values[rows])) for values in per_object] if len(rows) else []
    rows = rows[np.argsort(-strangeness.rank[rows], kind="stable")][:count]
    return [
        ChosenObject(row, _reason(annotations, strangeness, row, *medians)) for row in rows.tolist()
    ]


def _reason(
    annotations: Annotations,
    strangeness: Strangeness,
    row: int,
    median_side: float,
    median_aspect: float,
) -> str:
    """Say what is strange about an object: what it is flagged for, and its larger deviation."""
    side, aspect = strangeness.sides[row], strangeness.aspects[row]
    by_side, by_aspect = strangeness.side_deviation[row], strangeness.aspect_deviation[row]
    reasons = []
    if strangeness.twin[row] >= 0:
        twin = annotation_id(annotations, strangeness.twin[row])
        reasons.append(f"near-duplicate of {twin}, IoU {strangeness.twin_iou[row]:.2f}")
    if side < TINY_SIDE:
        reasons.append(f"tiny: side {side:.2g} pixels")
    if not reasons or max(abs(by_side), abs(by_aspect)) >= FLAGGED_DEVIATION:
        reasons.append(
            f"side {side:.3g}, median {median_side:.3g} ({by_side:+.1f} sd)"
            if abs(by_side) >= abs(by_aspect)
            else f"aspect {aspect:.2g}, median {median_aspect:.2g} ({by_aspect:+.1f} sd)"
        )
    return "; ".join(reasons)


def annotation_id(annotations: Annotations, row: int) -> int:
    """Return the id of an object in its file, which must have been read with `for_scoring`."""
    assert annotations.table is not None
    return int(annotations.table.ids[annotations.rows_in_file[row]])


def _size_of(annotations: Annotations, row: int) -> str:
    width, height = (annotations.boxes[row, 2:] - annotations.boxes[row, :2]).tolist()
    crowd = ", crowd region" if annotations.is_crowd[row] else ""
    return f"{width:.0f} x {height:.0f} pixels{crowd}"
