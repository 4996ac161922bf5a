"""Reference average precision of PASCAL VOC and ILSVRC for one class, detection by detection.

A detection is (image, score, box), an object (image, box, difficult).
"""

from collections.abc import Sequence

from tests.reference.boxes import Box, area, iou

Detection = tuple[int, float, Box]
Object = tuple[int, Box, bool]


def voc_outcomes(detections: Sequence[Detection], objects: Sequence[Object]) -> list[str]:
    """Return "right", "wrong" or "neither" for every detection, by falling score.

    "neither": the detection matches a difficult object and does not count.
    """
    outcomes, found = [], set()
    for image, _, box in sorted(detections, key=lambda each: -each[1]):
        best, best_iou = -1, 0.0
        for i, (where, other, _) in enumerate(objects):
            if where == image and iou(box, other) > best_iou:
                best, best_iou = i, iou(box, other)
        if best_iou < 0.5:
            outcomes.append("wrong")
        elif objects[best][2]:
            outcomes.append("neither")
        else:
            outcomes.append("wrong" if best in found else "right")
            found.add(best)
    return outcomes


def ilsvrc_outcomes(detections: Sequence[Detection], objects: Sequence[Object]) -> list[str]:
    outcomes, found = [], set()
    for image, _, box in sorted(detections, key=lambda each: -each[1]):
        best, best_iou = -1, -1.0
        for i, (where, other, _) in enumerate(objects):
            width, height = other[2] - other[0], other[3] - other[1]
            threshold = min(0.5, area(other) / ((width + 10) * (height + 10)))
            free = where == image and i not in found
            if free and iou(box, other) >= threshold and iou(box, other) > best_iou:
                best, best_iou = i, iou(box, other)
        if best == -1:
            outcomes.append("wrong")
        elif objects[best][2]:
            outcomes.append("neither")
        else:
            outcomes.append("right")
            found.add(best)
    return outcomes


def curve(outcomes: Sequence[str]) -> list[tuple[int, float]]:
    """Return (number of objects found, precision) after every detection that counts."""
    points, right, total = [], 0, 0
    for outcome in outcomes:
        if outcome != "neither":
            total += 1
            right += outcome == "right"
            points.append((right, right / total))
    return points


def voc07_ap(outcomes: Sequence[str], num_objects: int) -> float:
    points = curve(outcomes)
    best = [
        max((p for right, p in points if 10 * right >= tenth * num_objects), default=0.0)
        for tenth in range(11)
    ]
    return sum(best) / 11


def voc12_ap(outcomes: Sequence[str], num_objects: int) -> float:
    points = curve(outcomes)
    highest = [
        max((p for right, p in points if right >= count), default=0.0)
        for count in range(1, num_objects + 1)
    ]
    return sum(highest) / num_objects
