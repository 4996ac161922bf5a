"""Comparison of two lists of detections of one image that should be equal."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from detection.structures import Detections

_ROUNDING = 1e-3
"""Scores this near to a limit may be on either side of it."""


@dataclass(frozen=True)
class DetectionDifferences:
    """Differences between the detections of two networks that should be equal.

    boxes: largest difference of a coordinate, in pixels. scores: largest difference. masks: number
    of pixels that are in one mask alone, as a share of the pixels in any mask. unpaired: detections
    without a partner.
    """

    boxes: float
    scores: float
    masks: float
    unpaired: int


def compare_detections(
    expected: Detections, found: Detections, *, score_thresh: float, max_detections: int
) -> DetectionDifferences:
    """Pair the detections of an image and return how much they differ.

    A detection's partner has its label and the nearest box; by falling score each is taken once.
    One without a partner is not counted if rounding decides whether it is there: its score is next
    to the threshold, or the other list is full and has no lower score. NaN makes a difference NaN.

    Args:
        expected: of the network.
        found: of the file.
        score_thresh: below it nothing is detected.
        max_detections: largest number of detections of an image.
    """
    pairs = _pairs(expected, found)
    boxes = scores = 0.0
    one_alone = in_any = 0
    for ours, theirs in pairs:
        # np.maximum keeps NaN, unlike max
        boxes = float(np.maximum(boxes, _distance(expected.boxes[ours], found.boxes[theirs])))
        score = abs(float(expected.scores[ours] - found.scores[theirs]))
        scores = float(np.maximum(scores, score))
        if expected.masks is not None and found.masks is not None:
            one, other = expected.masks[ours], found.masks[theirs]
            one_alone += int(np.count_nonzero(one ^ other))
            in_any += int(np.count_nonzero(one | other))
    unpaired = 0
    for side, (detections, others) in enumerate(((expected, found), (found, expected))):
        paired = {pair[side] for pair in pairs}
        limit = score_thresh
        if len(others) == max_detections:
            limit = max(limit, float(others.scores.min()))
        unpaired += sum(
            index not in paired and not score <= limit + _ROUNDING
            for index, score in enumerate(detections.scores.tolist())
        )
    return DetectionDifferences(boxes, scores, one_alone / max(in_any, 1), unpaired)


def _pairs(expected: Detections, found: Detections) -> list[tuple[int, int]]:
    """Return pairs of indices with the same label: for each expected box the nearest free one."""
    free = set(range(len(found)))
    pairs = []
    for index in range(len(expected)):
        same = [other for other in free if found.labels[other] == expected.labels[index]]
        if not same:
            continue
        box = expected.boxes[index]
        nearest = min(same, key=lambda other: _distance(box, found.boxes[other]))
        if _distance(box, found.boxes[nearest]) < _longest_side(box) / 2:
            free.remove(nearest)
            pairs.append((index, nearest))
    return pairs


def _distance(box: Tensor, other: Tensor) -> float:
    return float((box - other).abs().max())


def _longest_side(box: Tensor) -> float:
    return float((box[2:] - box[:2]).max())
