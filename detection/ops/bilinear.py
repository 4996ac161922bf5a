"""Bilinear interpolation along one axis: the two cells beside a point, and their weights."""

import torch
from torch import Tensor


def bilinear_taps(points: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two cells beside each point of an axis, and their weights.

    Args:
        points: any shape, float; 0 is the centre of the first cell. The weights of a point a cell
            or more outside are 0; a point nearer than that reads the outermost cell only.
        sizes: int64, cells along the axis; broadcasts with `points`.

    Returns:
        cells int64 and weights, each of the shape of `points` with 2 behind it.
    """
    inside = (points >= -1) & (points <= sizes)
    points = points.clamp(min=0)
    # clamped as integers: a NaN makes NaN weights, but no index outside the map
    cell = points.to(torch.int64).clamp(min=0).minimum(sizes - 1)
    share = points - cell
    cells = torch.stack([cell, (cell + 1).minimum(sizes - 1)], dim=-1)
    weights = torch.stack([(1 - share) * inside, share * inside], dim=-1)
    return cells, weights
