"""Neighbourhoods of sampled cells of a feature pyramid: the input of 3x3 convolutions there.

B images, S samples per image, L levels, C channels, D = 2 radius + 1: side of a neighbourhood.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from detection.ops.kernels.sum_bags import pick, sum_bags


def pick_neighbours(
    features: Sequence[Tensor], cell_idxs: Tensor, *, radius: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the D x D cells around each sampled cell, and which of them are in its map.

    A stack of n 3x3 convolutions reads a neighbourhood of radius n.

    Args:
        features: L tensors (B, C, H_l, W_l).
        cell_idxs: (B, S) int64, indices into the cells of all levels, ordered by level and row.
        radius: 1 gives 3x3 cells.

    Returns:
        (B, S, D, D, C) in the features' dtype, zeros outside the map; and (B, S, D, D) bool, True
        inside.
    """
    heights, widths = zip(*(feature.shape[-2:] for feature in features), strict=True)
    # first cell of each level, and at the end the number of all cells
    starts = list(accumulate((h * w for h, w in zip(heights, widths, strict=True)), initial=0))
    # a cell's level is the number of later levels that start at or before it
    levels = torch.zeros_like(cell_idxs)
    for start in starts[1:-1]:
        levels = levels + (cell_idxs >= start)
    # (B, S, 1, 1) each, to broadcast with D rows (D, 1) and D columns (D,)
    height, width, first = (
        pick(values, levels)[..., None, None] for values in (heights, widths, starts[:-1])
    )
    place = cell_idxs[..., None, None] - first  # index within the level
    steps = torch.arange(-radius, radius + 1, device=cell_idxs.device)
    # (B, S, D, 1) and (B, S, 1, D)
    rows, columns = place // width + steps[:, None], place % width + steps
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    images = torch.arange(len(cell_idxs), device=cell_idxs.device)[:, None, None, None]
    # A table has one row per cell, ordered by image, y, x. Cells outside the map are clamped to a
    # valid index; their weight is 0.
    rows = images * height + rows.clamp(min=0).minimum(height - 1)
    idxs = rows * width + columns.clamp(min=0).minimum(width - 1)  # (B, S, D, D)
    tables = [feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in features]
    # B * S groups, each of D * D bags of a single cell
    bags = idxs.int().view(-1, len(steps) ** 2, 1)
    weights = inside.to(tables[0].dtype).view_as(bags)
    found = sum_bags(tables, levels.flatten(), bags, weights)  # (B * S, D * D, C)
    return found.unflatten(0, cell_idxs.shape).unflatten(2, inside.shape[2:]), inside
