"""RoIAlign with an adaptive number of samples on a CPU: two matrix products for each region.

B images, R RoIs per image, M = B * R RoIs, L pyramid levels, C channels, S bins along a side.
A region reads h rows and w columns of its map.
Boxes are xyxy pixels of the network input; a cell of a level covers stride x stride pixels.

Bilinear samples on a grid are separable, so the bins of a region are `rows @ crop @ columns.T`:
weights (S, h), the part (h, w, C) of the map that the region reads, and weights (S, w). With
channels innermost the first product reads the map in place. The number of samples changes the
weights, not the size of the products.

The loop over regions needs their parts of the map as Python numbers. On a CPU this costs little,
and a compiled graph sees one operator.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detection.ops.bilinear import bilinear_taps
from detection.ops.kernels.roi_align import corners_and_extents


class _Region(NamedTuple):
    """A region that reads at least one cell.

    idx: in 0..M-1. image: in 0..B-1. rows, columns: the part of the map that it reads.
    row_weights: (S, h), of each row in each bin. column_weights: (S, w).
    """

    idx: int
    image: int
    rows: slice
    columns: slice
    row_weights: Tensor
    column_weights: Tensor


def align_rois_adaptively(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    levels: Tensor,
    *,
    resolution: int,
    aligned: bool,
    bin_stride: int,
) -> Tensor:
    """Implement `pool_rois` for RoIAlign with a `sampling_ratio` of 0 on a CPU.

    A cell that is not finite may spoil all bins of a region that reads it.

    Args:
        features: L tensors (B, C, H_l, W_l), the finest first.
        strides: L strides in pixels.
        boxes: (B, R, 4), float32 or wider, without a gradient.
        levels: (B, R) int64, the level that each box is pooled from.
        resolution: bins along a side.
        aligned: cell centres are at half-integer coordinates.
        bin_stride: take every bin_stride-th bin.

    Returns:
        as `pool_rois`.
    """
    maps = [feature.permute(0, 2, 3, 1).to(boxes.dtype) for feature in features]
    low, extents = corners_and_extents(strides, boxes, levels, aligned=aligned)
    levels = levels.where(boxes.isfinite().all(dim=2), -1)
    # Importing the compiler, which an operator needs, would cost a prediction a second.
    as_operator = torch.compiler.is_compiling() or torch.is_grad_enabled()
    run = adaptive_align_operator if as_operator else _align
    pooled: Tensor = run(maps, levels, low, extents, resolution, bin_stride)
    # (M, S, S, C) -> (M, C, S, S), channels-last in memory
    return pooled.permute(0, 3, 1, 2).to(features[0].dtype)


def _align(
    maps: Sequence[Tensor],
    levels: Tensor,
    low: Tensor,
    extents: Tensor,
    resolution: int,
    bin_stride: int,
) -> Tensor:
    """Return the bins (M, S, S, C) of the regions.

    maps: L tensors (B, H_l, W_l, C). levels: (B, R) int64; -1 makes a region's bins NaN.
    low, extents: (M, 2), x and y where the regions begin, and their lengths, in cells.
    """
    side, channels = -(-resolution // bin_stride), maps[0].shape[3]  # side is rounded up
    pooled = low.new_zeros(len(low), side, side, channels)
    pooled[levels.flatten() < 0] = torch.nan
    with torch.autocast("cpu", enabled=False):  # autocast would round the weights to bfloat16
        for level, cells in enumerate(maps):
            if not (levels == level).any():
                continue
            cells = cells.contiguous()
            for region in _regions(
                level, cells.shape, levels, low, extents, resolution, bin_stride
            ):
                crop = cells[region.image, region.rows, region.columns]
                # (S, h) @ (h, w * C) -> (S, w, C); then (S, w) @ (S, w, C) -> (S, S, C)
                strip = (region.row_weights @ crop.flatten(1)).view(side, -1, channels)
                torch.matmul(region.column_weights, strip, out=pooled[region.idx])
    return pooled


adaptive_align_operator = torch.library.custom_op(
    "resdet::adaptive_roi_align", _align, mutates_args=()
)
"""The implementation as an operator, with its gradient."""


@adaptive_align_operator.register_fake
def _(
    maps: Sequence[Tensor],
    levels: Tensor,
    low: Tensor,
    extents: Tensor,
    resolution: int,
    bin_stride: int,
) -> Tensor:
    side = -(-resolution // bin_stride)
    return low.new_empty(low.shape[0], side, side, maps[0].shape[3])


@torch.library.custom_op("resdet::adaptive_roi_align_gradient", mutates_args=())
def _gradient(
    grad: Tensor,
    levels: Tensor,
    low: Tensor,
    extents: Tensor,
    resolution: int,
    bin_stride: int,
    sizes: Sequence[int],
) -> list[Tensor]:
    """Return the maps' gradients, L tensors (B, H_l, W_l, C), for `grad` (M, S, S, C).

    sizes: H_0, W_0, H_1, W_1, ... The regions are added one after the other, always in one order.
    """
    side, grad = grad.shape[1], grad.contiguous()
    grads = _empty_maps(grad, levels, sizes)
    with torch.autocast("cpu", enabled=False):
        for level, cells in enumerate(grads):
            cells.zero_()
            for region in _regions(
                level, cells.shape, levels, low, extents, resolution, bin_stride
            ):
                crop = cells[region.image, region.rows, region.columns]
                # the transposed products: (w, S) @ (S, S, C) -> (S, w, C), and (h, S) @ (S, w * C)
                strip = region.column_weights.T @ grad[region.idx]
                crop.flatten(1).addmm_(region.row_weights.T, strip.view(side, -1))
    return grads


@_gradient.register_fake
def _(
    grad: Tensor,
    levels: Tensor,
    low: Tensor,
    extents: Tensor,
    resolution: int,
    bin_stride: int,
    sizes: Sequence[int],
) -> list[Tensor]:
    return _empty_maps(grad, levels, sizes)


def _empty_maps(grad: Tensor, levels: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    images, channels = levels.shape[0], grad.shape[3]
    shapes = zip(sizes[::2], sizes[1::2], strict=True)
    return [grad.new_empty(images, height, width, channels) for height, width in shapes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, levels, low, extents, *ctx.bins = inputs
    ctx.save_for_backward(levels, low, extents)
    ctx.sizes = [length for cells in maps for length in cells.shape[1:3]]


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, None, None, None, None]:
    grads = _gradient(grad, *ctx.saved_tensors, *ctx.bins, ctx.sizes)
    return grads, None, None, None, None, None


adaptive_align_operator.register_autograd(_backward, setup_context=_save)


def _regions(
    level: int,
    shape: Sequence[int],
    levels: Tensor,
    low: Tensor,
    extents: Tensor,
    resolution: int,
    bin_stride: int,
) -> Iterator[_Region]:
    """Yield the regions of a level whose map is of `shape` (B, H, W, C)."""
    idxs = (levels.flatten() == level).nonzero()[:, 0]
    bins = torch.arange(0, resolution, bin_stride)
    parts = []
    for axis, size in enumerate((shape[2], shape[1])):  # x and y
        weights = _axis_weights(low[idxs, axis], extents[idxs, axis], size, bins, resolution)
        is_read = weights.amax(1) > 0  # (regions, size)
        starts = is_read.int().argmax(1)
        # the first cell from the end; the end is the start if no cell is read
        ends = torch.where(is_read.any(1), size - is_read.flip(1).int().argmax(1), starts)
        parts.append((weights, starts.tolist(), ends.tolist()))
    (columns, lefts, rights), (rows, tops, bottoms) = parts
    num_rois = levels.shape[1]
    for number, idx in enumerate(idxs.tolist()):
        x, y = slice(lefts[number], rights[number]), slice(tops[number], bottoms[number])
        if x.start < x.stop and y.start < y.stop:
            row_weights, column_weights = rows[number, :, y], columns[number, :, x]
            yield _Region(idx, idx // num_rois, y, x, row_weights, column_weights)


def _axis_weights(low: Tensor, extents: Tensor, size: int, bins: Tensor, resolution: int) -> Tensor:
    """Return the weight (M, S, size) of each cell of an axis in each bin; low, extents: (M,).

    A bin is the mean of its samples, one for each begun cell of its length. Every step of the
    arithmetic is torchvision's, so that results are equal.
    """
    lengths = extents / resolution
    counts = lengths.ceil().clamp(min=0).long()  # no sample in a region that is turned around
    # All samples in one list (N,), because their number differs: the region of each, and its number
    # among the samples of a bin.
    region = torch.arange(len(low)).repeat_interleave(counts)
    number = torch.arange(len(region)) - (counts.cumsum(0) - counts)[region]
    low, lengths, counts = (value[region, None] for value in (low, lengths, counts))
    points = low + bins * lengths + (number[:, None] + 0.5) * lengths / counts  # (N, S)
    cells, weights = bilinear_taps(points, torch.tensor(size))  # (N, S, 2)
    # to positions in the flat result: region, bin, cell
    cells += ((region[:, None] * len(bins) + torch.arange(len(bins))) * size)[..., None]
    flat = weights.new_zeros(len(extents) * len(bins) * size)
    flat.index_add_(0, cells.flatten(), (weights / counts[..., None]).flatten())
    return flat.view(len(extents), len(bins), size)
