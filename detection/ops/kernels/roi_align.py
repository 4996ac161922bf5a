"""RoIAlign as a product with a sparse matrix: each bin is a weighted sum of T * T cells.

B images, R RoIs per image, M = B * R RoIs, L pyramid levels, C channels, S bins along a side,
T taps along a bin's side: two cells for each of its samples.
Boxes are xyxy pixels of the network input; a cell of a level covers stride x stride pixels.

The sums are embedding bags over the cells, channels innermost. On a CPU this is several times as
fast as torchvision's kernel. On a GPU the host does not wait to learn which RoIs a level has.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from detection.ops.bilinear import bilinear_taps
from detection.ops.kernels.sum_bags import pick, sum_bags


def align_rois(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    levels: Tensor,
    *,
    resolution: int,
    sampling_ratio: int,
    aligned: bool,
    bin_stride: int,
) -> Tensor:
    """Implement `pool_rois` for RoIAlign with a `sampling_ratio` of at least 1.

    Args:
        features: L tensors (B, C, H_l, W_l), the finest first.
        strides: L strides in pixels.
        boxes: (B, R, 4), float32 or wider, without a gradient.
        levels: (B, R) int64, the level that each box is pooled from.
        resolution: bins along a side.
        sampling_ratio: samples along a bin's side.
        aligned: cell centres are at half-integer coordinates.
        bin_stride: take every bin_stride-th bin.

    Returns:
        as `pool_rois`.
    """
    idxs, weights = align_matrix(
        [feature.shape[-2:] for feature in features],
        strides,
        boxes,
        levels,
        resolution=resolution,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        bin_stride=bin_stride,
    )
    # (B * H_l * W_l, C): one row for each cell, ordered by image, y, x
    cells = [feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in features]
    pooled: Tensor = sum_bags(cells, levels.flatten(), idxs, weights.to(cells[0].dtype))
    side = -(-resolution // bin_stride)  # rounded up
    # (M, S * S, C) -> (M, S, S, C) -> (M, C, S, S), channels-last in memory
    return pooled.view(-1, side, side, pooled.shape[2]).permute(0, 3, 1, 2)


def align_matrix(
    shapes: Sequence[torch.Size],
    strides: Sequence[int],
    boxes: Tensor,
    levels: Tensor,
    *,
    resolution: int,
    sampling_ratio: int,
    aligned: bool,
    bin_stride: int,
) -> tuple[Tensor, Tensor]:
    """Return RoIAlign's matrix: the cells (M, S * S, T * T) int32 of each bin, and their weights.

    The cells of each level are numbered by image, y, x. Every step of the arithmetic is
    torchvision's, so that results are equal.
    """
    # (B, R): size of each box's level, and number of the first cell of its image there
    height = pick([height for height, _ in shapes], levels)
    width = pick([width for _, width in shapes], levels)
    first_cell = torch.arange(len(boxes), device=boxes.device)[:, None] * (height * width)

    low, extent = corners_and_extents(strides, boxes, levels, aligned=aligned)
    sizes = torch.stack([width, height], dim=-1).flatten(0, 1)
    bins = torch.arange(0, resolution, bin_stride, device=boxes.device)
    cells, weights = _taps(low, extent / resolution, sizes, bins, sampling_ratio)
    columns, rows = cells.unbind(1)  # (M, S, T) each: the columns and rows that the bins read
    # from row numbers to the number of the row's first cell
    rows = rows * width.view(-1, 1, 1) + first_cell.view(-1, 1, 1)
    column_weights, row_weights = weights.unbind(1)

    # A bin reads all pairs of its rows and columns: (M, S, 1, T * T) with (M, 1, S, T * T). Cell
    # numbers add up, weights multiply. -> (M, S, S, T * T) -> (M, S * S, T * T)
    idx_pairs = _pairs(rows.int(), columns.int())
    weight_pairs = _pairs(row_weights, column_weights)
    return torch.add(*idx_pairs).flatten(1, 2), torch.mul(*weight_pairs).flatten(1, 2)


def corners_and_extents(
    strides: Sequence[int], boxes: Tensor, levels: Tensor, *, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Return where regions begin and how long they are, in cells of their level.

    Arguments as for `align_rois`. Both results are (M, 2), x and y.
    """
    # With `aligned` integer coordinates become cell centres.
    corners = boxes / pick(strides, levels)[..., None] - (0.5 if aligned else 0.0)
    low, high = corners.flatten(0, 1).split(2, dim=-1)
    # torchvision's legacy minimum
    return low, high - low if aligned else (high - low).clamp(min=1)


def _taps(
    low: Tensor, bin_size: Tensor, sizes: Tensor, bins: Tensor, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Return the cells (M, 2, S, T) int64 that `bins` (S,) of each axis read, and their weights.

    low: (M, 2), where the regions begin, in cells. bin_size: (M, 2), length of a bin in cells.
    sizes: (M, 2), number of cells of the map along the axis.
    """
    # (M, 2, 1, 1) + (S, 1) * ... + (samples,) * ... -> (M, 2, S, samples)
    low, bin_size, sizes = (value[..., None, None] for value in (low, bin_size, sizes))
    samples = torch.arange(sampling_ratio, device=low.device) + 0.5
    points = low + bins[:, None] * bin_size + samples * (bin_size / sampling_ratio)
    cells, weights = bilinear_taps(points, sizes)  # (M, 2, S, samples, 2)
    # A bin is the mean of its samples.
    return cells.flatten(-2), (weights / sampling_ratio).flatten(-2)


def _pairs(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Pair every row tap with every column tap (M, S, T): (M, S, 1, T * T) and (M, 1, S, T * T).

    The pairs are written out here, because broadcasting over inner loops of length T is slow on a
    CPU.
    """
    taps = rows.shape[-1]
    return rows.repeat_interleave(taps, dim=-1)[:, :, None], columns.repeat(1, 1, taps)[:, None]
