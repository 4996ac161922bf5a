"""Reference RoIAlign, RoIPool and pyramid level assignment, bin by bin and sample by sample."""

import math

import torch
from torch import Tensor

from tests.reference.boxes import Box, area


def level_of(box: Box, num_levels: int) -> int:
    """Return the pyramid level of a box; 0 is p2."""
    side = math.sqrt(area(box))
    if side == 0:
        return 0
    return min(max(math.floor(4 + math.log2(side / 224) + 1e-6), 2), num_levels + 1) - 2


def bilinear(feature: Tensor, y: float, x: float) -> Tensor:
    """Return (C,), `feature` (C, H, W) interpolated at a point.

    0 if the point is more than one cell outside; nearer points outside have the border's value.
    """
    _, height, width = feature.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros_like(feature[:, 0, 0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    y, x = y - top, x - left
    above = feature[:, top, left] * (1 - x) + feature[:, top, right] * x
    below = feature[:, bottom, left] * (1 - x) + feature[:, bottom, right] * x
    return above * (1 - y) + below * y


def roi_align(
    feature: Tensor, box: Box, *, stride: int, resolution: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """(C, resolution, resolution) of `feature` (C, H, W)."""
    x1, y1, x2, y2 = (value / stride - (0.5 if aligned else 0) for value in box)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1), max(height, 1)
    columns = sampling_ratio or math.ceil(width / resolution)
    rows = sampling_ratio or math.ceil(height / resolution)
    pooled = feature.new_zeros(len(feature), resolution, resolution)
    for i in range(resolution):
        for j in range(resolution):
            for k in range(rows):
                for m in range(columns):
                    y = y1 + (i + (k + 0.5) / rows) * height / resolution
                    x = x1 + (j + (m + 0.5) / columns) * width / resolution
                    pooled[:, i, j] += bilinear(feature, y, x) / (rows * columns)
    return pooled


def roi_pool(feature: Tensor, box: Box, *, stride: int, resolution: int) -> Tensor:
    """(C, resolution, resolution) of `feature` (C, H, W): the largest cell of each bin, else 0."""
    # halves are rounded away from zero
    x1, y1, x2, y2 = (
        int(math.copysign(math.floor(abs(value) / stride + 0.5), value)) for value in box
    )
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    pooled = feature.new_zeros(len(feature), resolution, resolution)
    for i in range(resolution):
        for j in range(resolution):
            top = max(y1 + math.floor(i * height / resolution), 0)
            bottom = max(y1 + math.ceil((i + 1) * height / resolution), 0)
            left = max(x1 + math.floor(j * width / resolution), 0)
            right = max(x1 + math.ceil((j + 1) * width / resolution), 0)
            cells = feature[:, top:bottom, left:right].flatten(1)
            if cells.numel():
                pooled[:, i, j] = cells.amax(dim=1)
    return pooled
