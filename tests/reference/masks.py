"""Reference mask pasting, pixel by pixel: bilinear interpolation of predicted mask cells."""

import math

import numpy as np


def paste_mask(cells: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool: true if the mask, interpolated at the pixel's centre, exceeds 0.5."""
    x1, y1, x2, y2 = box
    side = len(cells)
    result = np.zeros(size, np.bool_)
    for y in range(size[0]):
        for x in range(size[1]):
            if not (math.floor(x1) <= x < math.ceil(x2) and math.floor(y1) <= y < math.ceil(y2)):
                continue
            u = (x + 0.5 - x1) / (x2 - x1) * side - 0.5
            v = (y + 0.5 - y1) / (y2 - y1) * side - 0.5
            total = 0.0
            for row in (math.floor(v), math.floor(v) + 1):
                for column in (math.floor(u), math.floor(u) + 1):
                    if 0 <= row < side and 0 <= column < side:
                        weight = (1 - abs(v - row)) * (1 - abs(u - column))
                        total += weight * cells[row, column]
            result[y, x] = total > 0.5
    return result
