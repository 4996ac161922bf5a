"""Reference neighbourhood of a feature map cell, one cell at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor


def around(
    features: Sequence[Tensor], image: int, cell: int, *, radius: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the neighbourhood (D, D, C) of cell number `cell`, and which cells exist (D, D).

    D = 2 radius + 1. Cells are numbered level by level and row by row; outside the feature map they
    are zeros.
    """
    for level in features:
        height, width = level.shape[2:]
        if cell < height * width:
            break
        cell -= height * width
    cells, exists = [], []
    for y in range(cell // width - radius, cell // width + radius + 1):
        for x in range(cell % width - radius, cell % width + radius + 1):
            inside = 0 <= y < height and 0 <= x < width
            exists.append(inside)
            cells.append(
                level[image, :, y, x] if inside else torch.zeros_like(level[image, :, 0, 0])
            )
    side = (2 * radius + 1, 2 * radius + 1)
    return torch.stack(cells).unflatten(0, side), torch.tensor(exists).view(side)
