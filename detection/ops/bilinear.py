"""Bilinear interpolation along one axis: the two cells beside a point, and their weights."""

import torch
from torch import Tensor


def bilinear_taps(points: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two cells beside each point of an axis, and their weights.

    Args:
        points: any shape, float; 0 is the centre of the first cell. A point more than one cell
            outside has weights of 0; a point nearer than that reads the outermost cell only.
        sizes: int64, number of cells along the axis; broadcasts with `points`.

    Returns:
        cells int64 and weights, each of shape (*points.shape, 2).
    """
    inside = (points >= -1) & (points <= sizes)
    points = points.clamp(min=0)
    # The index is clamped again as an integer: a NaN gives NaN weights, but no invalid index.
    cell = points.to(torch.int64).clamp(min=0).minimum(sizes - 1)
    # Distance from the first cell. Beyond the last cell both taps are that cell, and their weights
    # (1 - share) + share still sum to 1.
    share = points - cell
    cells = torch.stack([cell, (cell + 1).minimum(sizes - 1)], dim=-1)
    weights = torch.stack([(1 - share) * inside, share * inside], dim=-1)
    return cells, weights
