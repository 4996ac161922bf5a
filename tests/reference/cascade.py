"""Reference of a cascade's training (Cai and Vasconcelos 2018), one box and one stage at a time."""

from collections.abc import Sequence
from typing import NamedTuple

from tests.reference.boxes import Box, area, decode, encode, iou
from tests.reference.inference import Size, clipped
from tests.reference.losses import Numbers, roi


class Object(NamedTuple):
    """A ground-truth box and its label."""

    box: Box
    label: int


class Output(NamedTuple):
    """What a stage says of a box: logits, background last, and deltas of each class, or of all."""

    box: Box
    logits: Numbers
    deltas: Sequence[Numbers]

    def moved(self, size: Size, weights: Sequence[float]) -> list[float]:
        """Return the box of the best class, which the next stage works on."""
        scores = self.logits[:-1]
        best = list(scores).index(max(scores))
        delta = self.deltas[best] if len(self.deltas) > 1 else self.deltas[0]
        return clipped(decode(delta, self.box, weights), size)


def next_boxes(
    outputs: Sequence[Output], size: Size, weights: Sequence[float]
) -> list[list[float]]:
    """Return the boxes of the next stage: those moved by this one, without those of no area."""
    moved = [output.moved(size, weights) for output in outputs]
    return [box for box in moved if area(box) > 0]


def stage_losses(
    outputs: Sequence[Sequence[Output]],
    objects: Sequence[Sequence[Object]],
    *,
    iou_thresh: float,
    weights: Sequence[float],
    beta: float,
) -> tuple[float, float]:
    """Return class and box loss of a stage, from its outputs and the objects of each image."""
    rows = []
    for of_image, there in zip(outputs, objects, strict=True):
        for box, logits, deltas in of_image:
            overlaps = [iou(each.box, box) for each in there]
            best = there[overlaps.index(max(overlaps))]
            background = len(logits) - 1
            label = best.label if max(overlaps) >= iou_thresh else background
            of_classes = list(deltas) * (background if len(deltas) == 1 else 1)
            rows.append((logits, of_classes, encode(best.box, box, weights), label))
    return roi(rows, beta)
