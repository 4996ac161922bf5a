"""3x3 neighbourhoods of sampled cells of a feature pyramid: the input of a 3x3 convolution there.

B images, S samples per image, L levels, C channels.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from detection.ops.kernels.sum_bags import pick, sum_bags


def pick_neighbours(features: Sequence[Tensor], cell_idxs: Tensor) -> Tensor:
    """Return the 3x3 cells around each sampled cell, row by row, zeros outside its map.

    Args:
        features: L tensors (B, C, H_l, W_l).
        cell_idxs: (B, S) int64, indices into the cells of all levels, ordered by level and row.

    Returns:
        (B, S, 9, C) in the features' dtype.
    """
    heights, widths = zip(*(feature.shape[-2:] for feature in features), strict=True)
    # first cell of each level, and at the end the number of all cells
    starts = list(accumulate((h * w for h, w in zip(heights, widths, strict=True)), initial=0))
    # a cell's level is the number of later levels that start at or before it
    levels = torch.zeros_like(cell_idxs)
    for start in starts[1:-1]:
        levels = levels + (cell_idxs >= start)
    # (B, S, 1, 1) each, to broadcast with 3 rows (3, 1) and 3 columns (3,)
    height, width, first = (
        pick(values, levels)[..., None, None] for values in (heights, widths, starts[:-1])
    )
    place = cell_idxs[..., None, None] - first  # index within the level
    steps = torch.arange(-1, 2, device=cell_idxs.device)
    # (B, S, 3, 1) and (B, S, 1, 3)
    rows, columns = place // width + steps[:, None], place % width + steps
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    images = torch.arange(len(cell_idxs), device=cell_idxs.device)[:, None, None, None]
    # A table has one row per cell, ordered by image, y, x. Cells outside the map are clamped to a
    # valid index; their weight is 0.
    rows = images * height + rows.clamp(min=0).minimum(height - 1)
    idxs = rows * width + columns.clamp(min=0).minimum(width - 1)  # (B, S, 3, 3)
    tables = [feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in features]
    # B * S groups, each of 9 bags of a single cell
    bags, weights = (each.view(-1, 9, 1) for each in (idxs.int(), inside.to(tables[0].dtype)))
    found: Tensor = sum_bags(tables, levels.flatten(), bags, weights).unflatten(0, cell_idxs.shape)
    return found
