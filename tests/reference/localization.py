"""Reference localization error, box voting and generalized IoU, in plain Python."""

from collections.abc import Sequence

from tests.reference.boxes import Box, iou


def is_right(label: int, boxes: Sequence[Box], prediction: tuple[int, Box]) -> bool:
    return prediction[0] == label and any(iou(box, prediction[1]) >= 0.5 for box in boxes)


def error(
    labels: Sequence[int],
    boxes: Sequence[Sequence[Box]],
    predictions: Sequence[Sequence[tuple[int, Box]]],
) -> float:
    """Return the share of images without a correct prediction."""
    wrong = 0
    for label, gt_boxes, of_image in zip(labels, boxes, predictions, strict=True):
        wrong += not any(is_right(label, gt_boxes, prediction) for prediction in of_image)
    return wrong / len(labels)


def vote(boxes: Sequence[Box], scores: Sequence[float], thresh: float) -> list[float]:
    """Return the score-weighted mean of the boxes that overlap the best one."""
    best = max(range(len(scores)), key=lambda index: scores[index])
    voters = [i for i, box in enumerate(boxes) if i == best or iou(box, boxes[best]) >= thresh]
    total = sum(scores[i] for i in voters)
    return [sum(scores[i] * boxes[i][side] for i in voters) / total for side in range(4)]


def giou(a: Box, b: Box) -> float:
    def area(box: Box) -> float:
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    inner = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - inner
    return iou(a, b) - (hull - union) / hull if hull else 0.0
