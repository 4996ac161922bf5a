"""Reference box voting for one image, in plain Python."""

from collections.abc import Iterable

from tests.reference.boxes import Box, iou


def vote(
    kept: Box, label: int, candidates: Iterable[tuple[Box, float, int]], *, iou_thresh: float
) -> list[float]:
    """Return the mean of the boxes that overlap `kept` and have its class, weighted by score.

    candidates: box, score and label of each.
    """
    voters = [
        (score, box)
        for box, score, other in candidates
        if score > 0 and other == label and iou(kept, box) >= iou_thresh
    ]
    total = sum(score for score, _ in voters)
    if total == 0:
        return list(kept)
    return [sum(score * box[side] for score, box in voters) / total for side in range(4)]
