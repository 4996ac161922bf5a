"""Reference 3x3 neighbourhood of a feature map cell, one cell at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor


def around(features: Sequence[Tensor], image: int, cell: int) -> Tensor:
    """Return the neighbourhood (9, C) of cell number `cell`; zeros outside the feature map.

    Cells are numbered level by level and row by row.
    """
    for level in features:
        height, width = level.shape[2:]
        if cell < height * width:
            break
        cell -= height * width
    rows = []
    for y in range(cell // width - 1, cell // width + 2):
        for x in range(cell % width - 1, cell % width + 2):
            inside = 0 <= y < height and 0 <= x < width
            rows.append(
                level[image, :, y, x] if inside else torch.zeros_like(level[image, :, 0, 0])
            )
    return torch.stack(rows)
