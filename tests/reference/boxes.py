"""Reference box operations for single boxes, in plain Python. A box is (x1, y1, x2, y2)."""

import math
from collections.abc import Sequence

Box = Sequence[float]


def area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def intersection(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def iou(a: Box, b: Box) -> float:
    union = area(a) + area(b) - intersection(a, b)
    return intersection(a, b) / union if union > 0 else 0.0


def ioa(a: Box, b: Box) -> float:
    """Return intersection over area of `b`: the share of `b` inside `a`."""
    return intersection(a, b) / area(b) if area(b) > 0 else 0.0


def encode(gt: Box, anchor: Box, weights: Sequence[float]) -> list[float]:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    gt_width, gt_height = gt[2] - gt[0], gt[3] - gt[1]
    dx = ((gt[0] + gt[2]) / 2 - (anchor[0] + anchor[2]) / 2) / width
    dy = ((gt[1] + gt[3]) / 2 - (anchor[1] + anchor[3]) / 2) / height
    deltas = [dx, dy, math.log(gt_width / width), math.log(gt_height / height)]
    return [delta * weight for delta, weight in zip(deltas, weights, strict=True)]


def decode(delta: Sequence[float], anchor: Box, weights: Sequence[float]) -> list[float]:
    dx, dy, dw, dh = (value / weight for value, weight in zip(delta, weights, strict=True))
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    center_x = (anchor[0] + anchor[2]) / 2 + dx * width
    center_y = (anchor[1] + anchor[3]) / 2 + dy * height
    width *= min(math.exp(dw), 1000 / 16)
    height *= min(math.exp(dh), 1000 / 16)
    left, top = center_x - width / 2, center_y - height / 2
    return [left, top, left + width, top + height]
