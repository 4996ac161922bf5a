"""The 3x3 cells around chosen cells of a pyramid: all that a 3x3 convolution needs there.

B images, S samples in each, L levels, C channels.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from detection.ops.kernels.sum_bags import pick, sum_bags


def pick_neighbours(features: Sequence[Tensor], cell_idxs: Tensor) -> Tensor:
    """Return the 3x3 cells around each sample, row by row, zeros outside its map.

    Args:
        features: L tensors (B, C, H_l, W_l).
        cell_idxs: (B, S) int64 into the cells of all levels, level by level, row by row.

    Returns:
        (B, S, 9, C) of the features' type.
    """
    heights, widths = zip(*(feature.shape[-2:] for feature in features), strict=True)
    starts = list(accumulate((h * w for h, w in zip(heights, widths, strict=True)), initial=0))
    levels = torch.zeros_like(cell_idxs)
    for start in starts[1:-1]:
        levels = levels + (cell_idxs >= start)
    # all (B, S, 1, 1), or with the 3 rows or columns in their place
    height, width, first = (
        pick(values, levels)[..., None, None] for values in (heights, widths, starts[:-1])
    )
    place = cell_idxs[..., None, None] - first
    steps = torch.arange(-1, 2, device=cell_idxs.device)
    rows, columns = place // width + steps[:, None], place % width + steps
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    images = torch.arange(len(cell_idxs), device=cell_idxs.device)[:, None, None, None]
    rows = images * height + rows.clamp(min=0).minimum(height - 1)
    idxs = rows * width + columns.clamp(min=0).minimum(width - 1)
    tables = [feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in features]
    bags, weights = (each.view(-1, 9, 1) for each in (idxs.int(), inside.to(tables[0].dtype)))
    found: Tensor = sum_bags(tables, levels.flatten(), bags, weights).unflatten(0, cell_idxs.shape)
    return found
