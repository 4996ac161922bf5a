"""Which examples a detector's report shows, and what is drawn for each.

I images, D detections, G objects.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detection.evaluation.errors import WRONG
from detection.evaluation.examples import (
    LabelErrors,
    false_positives,
    image_errors,
    label_errors,
    missed_objects,
)
from detection.evaluation.matching import MatchTable
from detection.evaluation.overlaps import MIN_OVERLAP
from detection.report.gallery import Card, Gallery, Shape, window_around

NUM_CROPS, NUM_IMAGES = 48, 16
"""Most examples of a gallery of crops, and of the worst images."""
LISTED = 1000
"""Most examples of a kind that report.json lists."""
CONFIDENT = 0.5
"""Least score of a detection that speaks for a label error; the report's threshold if higher."""
_TEXT = 24  # longest text at a box, in characters
_MOST_BOXES = 150  # drawn in one view


class Examples:
    """Chooses and describes the examples of one `MatchTable`.

    Args:
        table: matched boxes.
        sizes: (I, 2) height and width of the images, zeros where unknown.
        file_names: of the I images.
        kinds: (D,) positions in `WRONG`, from `tide_errors`.
        score_thresh: detections with a lower score are neither drawn nor counted.
    """

    def __init__(
        self,
        table: MatchTable,
        *,
        sizes: np.ndarray,
        file_names: Sequence[str],
        kinds: np.ndarray,
        score_thresh: float,
    ) -> None:
        self._table, self._sizes, self._names = table, sizes, file_names
        self._kinds = kinds
        self.score_thresh = score_thresh
        self.confident = max(score_thresh, CONFIDENT)
        self._errors = image_errors(table, score_thresh=score_thresh)
        self._wrong = false_positives(table, score_thresh=score_thresh)
        self._missed = missed_objects(table, score_thresh=score_thresh)
        self._suspects: LabelErrors = label_errors(table, score_thresh=self.confident)
        # rows of detections and objects by image, so that a card finds its own quickly
        shown = np.flatnonzero(table.det_score >= score_thresh)
        self._detections = _by_image(shown, table.det_image, len(table.image_ids))
        objects = np.arange(len(table.gt_label))
        self._objects = _by_image(objects, table.gt_image, len(table.image_ids))
        self._near = np.zeros(len(table.gt_label))  # largest IoU with any detection
        np.maximum.at(self._near, table.pairs.objects, table.pairs.ious)

    def numbers(self) -> dict[str, Any]:
        """Return what report.json lists: counts, and at most `LISTED` examples of each kind."""
        suspects = self._suspects
        worst = self._errors.worst()
        return {
            "score_thresh": self.score_thresh,
            "label_error_score_thresh": self.confident,
            "worst_images": _listed(worst, self._image),
            "false_positives": _listed(self._wrong, self._detection),
            "missed_objects": _listed(self._missed, self._object),
            "missing_annotations": _listed(suspects.missing, self._detection),
            "other_class": _listed(suspects.other_class, self._at_object),
            "duplicate_annotations": _listed(suspects.duplicates, self._pair),
            "unseen_annotations": _listed(suspects.unseen, self._object),
        }

    def galleries(self) -> list[Gallery]:
        """Return the cards of all galleries, in the order of their importance."""
        table, suspects = self._table, self._suspects
        some = NUM_CROPS // 2
        return [
            Gallery(
                "missing",
                [
                    self._detection_card(row, "no annotation here?")
                    for row in spread(suspects.missing, table.det_label, some)
                ],
            ),
            Gallery(
                "other-class",
                [
                    self._detection_card(row, self._disagreement(row))
                    for row in spread(suspects.other_class, table.det_label, some)
                ],
            ),
            Gallery("duplicates", list(map(self._pair_card, suspects.duplicates[:some].tolist()))),
            Gallery("unseen", self._object_cards(suspects.unseen, some)),
            Gallery("worst", list(map(self._image_card, self._errors.worst()[:NUM_IMAGES])), True),
            Gallery(
                "wrong",
                [
                    self._detection_card(row, self._reason(row))
                    for row in spread(self._wrong, table.det_label, NUM_CROPS)
                ],
            ),
            Gallery("missed", self._object_cards(self._missed, NUM_CROPS)),
        ]

    def _object_cards(self, rows: np.ndarray, count: int) -> list[Card]:
        return [self._object_card(row) for row in spread(rows, self._table.gt_label, count)]

    def _detection_card(self, row: int, reason: str) -> Card:
        table, image = self._table, int(self._table.det_image[row])
        label = int(table.det_label[row])
        title = f"{table.names[label]} {table.det_score[row]:.2f}"
        # its own class, and that of the annotation that it is on
        labels, best = {label}, int(table.best_any_gt[row])
        if table.best_iou_any[row] >= 0.5:
            labels.add(int(table.gt_label[best]))
        return self._card(image, [table.det_box[row]], title, reason, labels, detections={row})

    def _object_card(self, row: int) -> Card:
        table = self._table
        near = f"best IoU with any detection {self._near[row]:.2f}"
        if not self._near[row]:
            near = f"no detection of any class has IoU {MIN_OVERLAP} with it"
        title = f"{table.names[table.gt_label[row]]}, annotation {table.gt_ids[row]}"
        labels = {int(table.gt_label[row])}
        image = int(table.gt_image[row])
        return self._card(image, [table.gt_box[row]], title, near, labels, objects={row})

    def _pair_card(self, pair: list[int]) -> Card:
        table, names = self._table, [self._table.names[self._table.gt_label[row]] for row in pair]
        ids = " and ".join(str(table.gt_ids[row]) for row in pair)
        what = "twice the same class" if names[0] == names[1] else "two classes"
        title = names[0] if names[0] == names[1] else " / ".join(names)
        labels = {int(table.gt_label[row]) for row in pair}
        image, lines = int(table.gt_image[pair[0]]), f"{what}: annotations {ids}"
        boxes = [table.gt_box[row] for row in pair]
        return self._card(image, boxes, title, lines, labels, objects=set(pair))

    def _image_card(self, image: int) -> Card:
        errors, table = self._errors, self._table
        line = f"{errors.wrong[image]} wrong, {errors.missed[image]} missed, "
        line += f"{errors.right[image]} right; F1 {errors.f1[image]:.2f}"
        rows, found = self._objects[image], self._detections[image]
        labels = {*table.gt_label[rows].tolist(), *table.det_label[found].tolist()}
        missed, wrong = np.intersect1d(rows, self._missed), np.intersect1d(found, self._wrong)
        title = self._names[image] or f"image {table.image_ids[image]}"
        return self._card(
            int(image),
            [],
            title,
            line,
            labels,
            objects=set(missed.tolist()),
            detections=set(wrong.tolist()),
        )

    def _card(
        self,
        image: int,
        boxes: Sequence[np.ndarray],
        title: str,
        line: str,
        labels: set[int],
        *,
        objects: set[int] | frozenset[int] = frozenset(),
        detections: set[int] | frozenset[int] = frozenset(),
    ) -> Card:
        """Return a card of the window around `boxes`, or of the whole image without any."""
        table, window = self._table, None
        if boxes:
            corners = np.array(boxes)
            around = [*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist()]
            window = window_around(around, self._sizes[image].tolist())
        annotated = [
            Shape(
                tuple(table.gt_box[row].tolist()),
                _cut(table.names[table.gt_label[row]]),
                row in objects,
                bool(table.gt_crowd[row]),
            )
            for row in _inside(self._objects[image], table.gt_box, window)
        ]
        detected = [
            Shape(
                tuple(table.det_box[row].tolist()),
                f"{_cut(table.names[table.det_label[row]])} {table.det_score[row]:.2f}",
                row in detections,
            )
            for row in _inside(self._detections[image], table.det_box, window)
        ]
        name = self._names[image] or f"image {table.image_ids[image]}"
        lines = [line] if name == title else [line, name]
        return Card(image, window, annotated, detected, title, lines, frozenset(labels))

    def _reason(self, row: int) -> str:
        """Say why a detection is wrong, by TIDE's kinds."""
        table, kind = self._table, list(WRONG)[self._kinds[row]]
        if kind == "classification":
            return self._disagreement(row)
        if kind == "both":
            other = table.names[table.gt_label[table.best_any_gt[row]]]
            return f"class and box: IoU {table.best_iou_any[row]:.2f} with {_cut(other)}"
        if kind == "localization":
            return f"box too far off: IoU {table.best_iou_same[row]:.2f} with its class"
        if kind == "duplicate":
            return "duplicate: a better detection has the object"
        return "background: no annotation here"

    def _disagreement(self, row: int) -> str:
        best = int(self._table.best_any_gt[row])
        other = self._table.names[self._table.gt_label[best]]
        return f"annotated as {_cut(other)}, IoU {self._table.best_iou_any[row]:.2f}"

    def _image(self, image: int) -> dict[str, Any]:
        errors = self._errors
        return {
            **self._named(image),
            **{key: int(getattr(errors, key)[image]) for key in ("right", "wrong", "missed")},
            "f1": float(errors.f1[image]),
        }

    def _detection(self, row: int) -> dict[str, Any]:
        table = self._table
        return {
            **self._named(int(table.det_image[row])),
            "class": table.names[table.det_label[row]],
            "score": float(table.det_score[row]),
            "box": table.det_box[row].round(2).tolist(),
            "reason": self._reason(row),
        }

    def _at_object(self, row: int) -> dict[str, Any]:
        best = int(self._table.best_any_gt[row])
        other = self._table.names[self._table.gt_label[best]]
        ids = {"annotated_class": other, "annotation": int(self._table.gt_ids[best])}
        return self._detection(row) | ids

    def _object(self, row: int) -> dict[str, Any]:
        table = self._table
        return {
            **self._named(int(table.gt_image[row])),
            "annotation": int(table.gt_ids[row]),
            "class": table.names[table.gt_label[row]],
            "box": table.gt_box[row].round(2).tolist(),
            "best_iou": float(self._near[row]),
        }

    def _pair(self, pair: np.ndarray) -> dict[str, Any]:
        return {"first": self._object(int(pair[0])), "second": self._object(int(pair[1]))}

    def _named(self, image: int) -> dict[str, Any]:
        return {"image_id": int(self._table.image_ids[image]), "file_name": self._names[image]}


def spread(rows: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """Return at most `count` of `rows`, in their order, so that no class takes all places.

    The first of each class come first, then the second ones, and so on; but the few best of all are
    always among them.

    Args:
        rows: the best first.
        labels: class of every row.
        count: number of places.
    """
    best, rest = rows[: count // 4], rows[count // 4 :]
    seen: dict[int, int] = {}
    ranks = []
    for label in labels[rest].tolist():
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    chosen = np.sort(np.argsort(np.array(ranks), kind="stable")[: count - len(best)])
    return [*best.tolist(), *rest[chosen].tolist()]


def _listed(rows: np.ndarray, describe: Any) -> dict[str, Any]:
    return {"count": len(rows), "first": [describe(row) for row in rows[:LISTED]]}


def _by_image(rows: np.ndarray, images: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the rows of each of `count` images, in the order of `rows`."""
    order = np.argsort(images[rows], kind="stable")
    ends = np.searchsorted(images[rows][order], np.arange(1, count))
    return np.split(rows[order], ends)


def _inside(
    rows: np.ndarray, boxes: np.ndarray, window: tuple[float, float, float, float] | None
) -> list[int]:
    """Return the rows whose boxes reach into the window, at most `_MOST_BOXES`."""
    if window is not None:
        x1, y1, x2, y2 = boxes[rows].T
        rows = rows[(x1 < window[2]) & (x2 > window[0]) & (y1 < window[3]) & (y2 > window[1])]
    return [int(row) for row in rows[:_MOST_BOXES]]


def _cut(name: str) -> str:
    return name if len(name) <= _TEXT else f"{name[: _TEXT - 1]}…"
