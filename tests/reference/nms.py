"""Reference non-maximum suppression for one image, box by box."""

from collections.abc import Sequence

from tests.reference.boxes import Box, iou


def nms(
    boxes: Sequence[Box], scores: Sequence[float], groups: Sequence[int], iou_thresh: float
) -> list[bool]:
    """Return whether each box is kept; ties in score are sorted by index."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        rivals = [j for j in kept if groups[j] == groups[i]]
        if all(iou(boxes[i], boxes[j]) <= iou_thresh for j in rivals):
            kept.append(i)
    return [i in kept for i in range(len(boxes))]
