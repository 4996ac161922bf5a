"""The localization error image by image, in Python's numbers."""

from collections.abc import Sequence

from tests.reference.boxes import Box, iou


def is_right(label: int, boxes: Sequence[Box], answer: tuple[int, Box]) -> bool:
    return answer[0] == label and any(iou(box, answer[1]) >= 0.5 for box in boxes)


def error(
    labels: Sequence[int],
    boxes: Sequence[Sequence[Box]],
    answers: Sequence[Sequence[tuple[int, Box]]],
) -> float:
    """Share of the images none of whose answers is right."""
    wrong = 0
    for label, of_image, guesses in zip(labels, boxes, answers, strict=True):
        wrong += not any(is_right(label, of_image, guess) for guess in guesses)
    return wrong / len(labels)


def vote(boxes: Sequence[Box], scores: Sequence[float], thresh: float) -> list[float]:
    """Mean by score of the boxes that overlap the best one."""
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
