"""Pooling of regions to maps of one size: RoIAlign (He et al. 2017), RoIPool (Girshick 2015).

B images, R regions in each, M = B * R regions, L pyramid levels, C channels, S bins along a side,
T taps along a bin's side: the two cells beside each of its samples.
Boxes are xyxy pixels of the network input; a cell of a level covers stride x stride pixels.

RoIAlign is a product with a sparse matrix: every bin is a weighted sum of T * T cells. It runs as
embedding bags over the cells, channels innermost. On a CPU that is several times as fast as
torchvision's kernel, and on a GPU no level makes the host wait for its regions.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detection.ops.boxes import box_area
from detection.ops.kernels.sum_bags import pick, sum_bags


def assign_levels(
    boxes: Tensor,
    *,
    num_levels: int,
    canonical_size: float = 224,
    canonical_level: int = 4,
    min_level: int = 2,
) -> Tensor:
    """Return each box's pyramid level, by its size (Lin et al. 2017, feature pyramids, eq. 1).

    Args:
        boxes: (..., 4) xyxy; empty boxes go to the finest level.
        num_levels: how many levels there are.
        canonical_size: side in pixels from which a box belongs to `canonical_level`.
        canonical_level: the 4 of p4.
        min_level: the 2 of p2, the finest level.

    Returns:
        (...,) int64 in 0..num_levels-1, 0 the finest; 0 of a box with NaN.
    """
    # 1e-6: a side of exactly 224 stays on its level where the logarithm rounds down (Detectron)
    level = canonical_level + torch.log2(box_area(boxes).sqrt() / canonical_size) + 1e-6
    level = level.floor().clamp(min_level, min_level + num_levels - 1) - min_level
    return level.to(torch.int64).clamp(min=0)  # once more: a NaN may be any integer


def pool_rois(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    *,
    kind: Literal["roi_align", "roi_pool"],
    resolution: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    bin_stride: int = 1,
) -> Tensor:
    """Pool every box from the pyramid level of its size, or from the only level.

    Args:
        features: L tensors (B, C, H_l, W_l), the finest first; p2 is the first when L > 1.
        strides: L strides in pixels.
        boxes: (B, R, 4); R may be 0. No gradient flows to them.
        kind: roi_align averages bilinear samples, which are 0 where they lie a cell or more outside
            the map; roi_pool takes the largest cell of a bin.
        resolution: bins along a side.
        sampling_ratio: roi_align: samples along a bin's side; 0 takes about one for each cell.
        aligned: roi_align: cell centres are at half-integer coordinates. False is half a cell off,
            as torchvision's detectors were trained.
        bin_stride: take every bin_stride-th bin along each side alone, from the first on.

    Returns:
        (M, C, r, r) of the features' type; r is resolution / bin_stride, rounded up.
    """
    boxes = boxes.detach().to(torch.promote_types(features[0].dtype, torch.float32))
    levels = boxes.new_zeros(boxes.shape[:2], dtype=torch.int64)
    if len(features) > 1:
        levels = assign_levels(boxes, num_levels=len(features))
    if kind == "roi_align" and sampling_ratio > 0:
        idxs, weights = _align_matrix(
            [feature.shape[-2:] for feature in features],
            strides,
            boxes,
            levels,
            resolution=resolution,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            bin_stride=bin_stride,
        )
        # (B * H_l * W_l, C)
        cells = [feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in features]
        pooled: Tensor = sum_bags(cells, levels.flatten(), idxs, weights.to(cells[0].dtype))
        side = -(-resolution // bin_stride)
        return pooled.view(-1, side, side, pooled.shape[2]).permute(0, 3, 1, 2)

    import torchvision  # takes a second, for it brings the compiler along

    images = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(levels)
    rois = torch.cat([images[..., None].to(boxes.dtype), boxes], dim=-1).flatten(0, 1)
    levels = levels.flatten()[:, None, None, None]
    size = (resolution, resolution)
    pooled = boxes.new_zeros(())
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        feature = feature.to(boxes.dtype)
        if kind == "roi_pool":
            part = torchvision.ops.roi_pool(feature, rois, size, 1 / stride)
        else:
            part = torchvision.ops.roi_align(feature, rois, size, 1 / stride, aligned=aligned)
        pooled = torch.where(levels == level, part, pooled)
    return pooled[..., ::bin_stride, ::bin_stride].to(features[0].dtype)


def _align_matrix(
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

    The cells of each level are numbered by image, y, x. The arithmetic is torchvision's, step for
    step.
    """
    height = pick([height for height, _ in shapes], levels)
    width = pick([width for _, width in shapes], levels)
    first_cell = torch.arange(len(boxes), device=boxes.device)[:, None] * (height * width)

    # both axes at once: (M, 2), x and y
    corners = boxes / pick(strides, levels)[..., None] - (0.5 if aligned else 0.0)
    low, high = corners.flatten(0, 1).split(2, dim=-1)
    extent = high - low if aligned else (high - low).clamp(min=1)
    sizes = torch.stack([width, height], dim=-1).flatten(0, 1)
    bins = torch.arange(0, resolution, bin_stride, device=boxes.device)
    cells, weights = _taps(low, extent / resolution, sizes, bins, sampling_ratio)
    columns, rows = cells.unbind(1)
    rows = rows * width.view(-1, 1, 1) + first_cell.view(-1, 1, 1)
    column_weights, row_weights = weights.unbind(1)

    idx_pairs = _pairs(rows.int(), columns.int())
    weight_pairs = _pairs(row_weights, column_weights)
    return torch.add(*idx_pairs).flatten(1, 2), torch.mul(*weight_pairs).flatten(1, 2)


def _taps(
    low: Tensor, bin_size: Tensor, sizes: Tensor, bins: Tensor, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Return the cells (M, 2, S, T) int64 that `bins` (S,) of each axis read, and their weights.

    `low` (M, 2) is where regions begin and `bin_size` (M, 2) how long their bins are, in cells;
    `sizes` (M, 2) are the map's cells along the axis.
    """
    low, bin_size, sizes = (value[..., None, None] for value in (low, bin_size, sizes))
    samples = torch.arange(sampling_ratio, device=low.device) + 0.5
    points = low + bins[:, None] * bin_size + samples * (bin_size / sampling_ratio)
    cells, weights = bilinear_taps(points, sizes)
    return cells.flatten(-2), (weights / sampling_ratio).flatten(-2)


def bilinear_taps(points: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two cells beside each point of an axis, and their weights.

    Args:
        points: any shape, float; 0 is the centre of the first cell. A point a cell or more outside
            has weights of 0, one nearer the outermost cell alone.
        sizes: int64, cells along the axis; broadcasts with `points`.

    Returns:
        cells int64 and weights, each of the shape of `points` with 2 behind it.
    """
    inside = (points >= -1) & (points <= sizes)
    points = points.clamp(min=0)
    # clamped as integers, so that a NaN box makes NaN features but no index outside the map
    cell = points.to(torch.int64).clamp(min=0).minimum(sizes - 1)
    share = points - cell
    cells = torch.stack([cell, (cell + 1).minimum(sizes - 1)], dim=-1)
    weights = torch.stack([(1 - share) * inside, share * inside], dim=-1)
    return cells, weights


def _pairs(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Line up every row tap (M, S, T) with every column tap: (M, S, 1, T * T), (M, 1, S, T * T).

    Written out before they meet, because broadcasting over inner loops of T is slow on a CPU.
    """
    taps = rows.shape[-1]
    return rows.repeat_interleave(taps, dim=-1)[:, :, None], columns.repeat(1, 1, taps)[:, None]
