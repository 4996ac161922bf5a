"""RoIAlign with an adaptive number of samples on a CPU: a product with a sparse matrix.

B images, R RoIs per image, M = B * R RoIs, L pyramid levels, C channels, S bins along a side.
Taps are the neighbouring cells that a bin reads along an axis; the number differs between regions
and axes. A line is one row of a bin's cells. E entries: pairs of a bin and a cell that it reads.
Boxes are xyxy pixels of the network input; a cell of a level covers stride x stride pixels.

As in `align_rois` the sums are embedding bags over the cells, channels innermost. Samples of a bin
that read the same cell share one entry: with n samples along an axis at most n + 1 cells instead of
2 * n. The number of entries depends on the boxes. To read it costs nothing on a CPU, and a compiled
graph sees one operator.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detection.ops.bilinear import bilinear_taps
from detection.ops.kernels.roi_align import corners_and_extents
from detection.ops.kernels.sum_bags import pick, sum_sorted


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
    maps = [feature.permute(0, 2, 3, 1) for feature in features]
    low, extents = corners_and_extents(strides, boxes, levels, aligned=aligned)
    levels = levels.where(boxes.isfinite().all(dim=2), -1)
    # Importing the compiler, which an operator needs, would cost a prediction a second.
    as_operator = torch.compiler.is_compiling() or torch.is_grad_enabled()
    run = adaptive_align_operator if as_operator else _align
    pooled: Tensor = run(maps, levels, low, extents, resolution, bin_stride)
    # (M, S, S, C) -> (M, C, S, S), channels-last in memory
    return pooled.permute(0, 3, 1, 2)


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
    sizes = [cells.shape[1:3] for cells in maps]
    side, channels = _num_bins(resolution, bin_stride), maps[0].shape[3]
    pooled = maps[0].new_empty(len(low), side, side, channels)
    pooled[levels.flatten() < 0] = torch.nan
    for part in _matrix(sizes, levels, low, extents, resolution, bin_stride):
        cells = maps[part.level].flatten(0, 2).contiguous()
        sums = F.embedding_bag(
            part.idxs,
            cells,
            part.offsets,
            mode="sum",
            per_sample_weights=part.weights.to(cells.dtype),
            include_last_offset=True,
        )
        pooled.index_copy_(0, part.regions, sums.view(-1, side, side, channels))
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
    side = _num_bins(resolution, bin_stride)
    return maps[0].new_empty(low.shape[0], side, side, maps[0].shape[3])


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

    sizes: H_0, W_0, H_1, W_1, ...
    """
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))
    grads = []
    images, channels = levels.shape[0], grad.shape[3]
    for part in _matrix(pairs, levels, low, extents, resolution, bin_stride):
        height, width = pairs[part.level]
        # A stable sort: the entries of a cell are always added in one order.
        cells, order = part.idxs.sort(stable=True)
        bags, _ = _enumerate(part.offsets.diff())
        sums = sum_sorted(
            cells,
            bags.int()[order],
            part.weights[order].to(grad.dtype),
            grad.index_select(0, part.regions).flatten(0, 2),
            images * height * width,
        )
        grads.append(sums.view(images, height, width, channels))
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
    pairs = zip(sizes[::2], sizes[1::2], strict=True)
    return [grad.new_empty(levels.shape[0], *pair, grad.shape[3]) for pair in pairs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, levels, low, extents, *ctx.bins = inputs
    ctx.save_for_backward(levels, low, extents)
    ctx.sizes = [length for cells in maps for length in cells.shape[1:3]]


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, None, None, None, None]:
    grads = _gradient(grad, *ctx.saved_tensors, *ctx.bins, ctx.sizes)
    return grads, None, None, None, None, None


adaptive_align_operator.register_autograd(_backward, setup_context=_save)


class _Part(NamedTuple):
    """The matrix of one level's regions.

    level: in 0..L-1. regions: (m,) int64, in 0..M-1. offsets: (m * S * S + 1,) int32, the first
    entry of each bin, ordered by region, y, x, and E. idxs: (E,) int32 cells, numbered by image, y,
    x. weights: (E,).
    """

    level: int
    regions: Tensor
    offsets: Tensor
    idxs: Tensor
    weights: Tensor


class _Taps(NamedTuple):
    """What the bins of A axes (x and y of every region) read.

    counts: (A,) int64 cells per bin; 0 for a region that is turned around. cells: (A, S) int64, the
    first one of each bin. weights: flat, ordered by axis, bin, cell. starts: (A,) int64, where each
    axis begins in `weights`.
    """

    counts: Tensor
    cells: Tensor
    weights: Tensor
    starts: Tensor


def _num_bins(resolution: int, bin_stride: int) -> int:
    return -(-resolution // bin_stride)  # rounded up


def _matrix(
    sizes: Sequence[Sequence[int]],
    levels: Tensor,
    low: Tensor,
    extents: Tensor,
    resolution: int,
    bin_stride: int,
) -> list[_Part]:
    """Return the parts of RoIAlign's matrix, one for each level; `sizes` are L (height, width)."""
    on_level = levels.flatten().add(1).bincount(minlength=len(sizes) + 1).tolist()  # from -1
    # (m,) the regions ordered by level, without those of level -1, which come first
    regions = levels.flatten().argsort(stable=True)[on_level[0] :]
    height, width = (pick(s, levels.flatten()[regions]) for s in zip(*sizes, strict=True))
    bins = torch.arange(0, resolution, bin_stride)
    axis_sizes = torch.stack([width, height], dim=1).flatten()
    taps = _taps(low[regions].flatten(), extents[regions].flatten(), axis_sizes, bins, resolution)
    image = regions.div(max(levels.shape[1], 1), rounding_mode="floor")
    idxs, weights = _entries(taps, width, image * (height * width))

    # the first entry of each bin, and the end of the last one
    num_entries = taps.counts.view(-1, 2).prod(1).repeat_interleave(len(bins) ** 2)
    offsets = F.pad(num_entries.cumsum(0), (1, 0))
    parts = []
    for level, (begin, end) in enumerate(pairwise(accumulate(on_level[1:], initial=0))):
        part = offsets[begin * len(bins) ** 2 : end * len(bins) ** 2 + 1]
        entries = slice(int(part[0]), int(part[-1]))
        relative = (part - part[0]).int()
        parts.append(_Part(level, regions[begin:end], relative, idxs[entries], weights[entries]))
    return parts


def _taps(low: Tensor, extents: Tensor, sizes: Tensor, bins: Tensor, resolution: int) -> _Taps:
    """Return what the bins of A axes read.

    low, extents: (A,), where the regions begin, and their lengths, in cells. sizes: (A,) int64,
    cells of the map. A bin is the mean of its samples, one for each begun cell of its length. Every
    step of the arithmetic is torchvision's, so that results are equal.
    """
    lengths = extents / resolution
    samples = lengths.ceil().clamp(min=0).long()  # (A,) per bin
    # All samples of a bin number in one list (N,): the axis of each, and its number in its bins.
    axis, number = _enumerate(samples)

    def near(axis: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cells (n, S, 2) beside samples, and their weights."""
        length = lengths[axis, None]
        inside_bin = (number[:, None] + 0.5) * length / samples[axis, None]
        return bilinear_taps(low[axis, None] + bins * length + inside_bin, sizes[axis, None])

    all_axes = torch.arange(len(low))
    first = near(all_axes, torch.zeros_like(samples))[0][..., 0]  # (A, S)
    last = near(all_axes, samples - 1)[0][..., 1]
    # As many cells for all bins of an axis; the others have a weight of 0.
    counts = (last - first + 1).amax(1).where(samples > 0, 0)
    first = first.minimum((sizes - counts)[:, None])

    cells, weights = near(axis, number)
    starts = len(bins) * (counts.cumsum(0) - counts)
    bin_starts = starts[:, None] + torch.arange(len(bins)) * counts[:, None]  # (A, S)
    flat = weights.new_zeros(len(bins) * int(counts.sum()))
    positions = cells + (bin_starts - first)[axis, :, None]
    flat.index_add_(0, positions.flatten(), (weights / samples[axis, None, None]).flatten())
    return _Taps(counts, first, flat, starts)


def _entries(taps: _Taps, width: Tensor, first_cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cells (E,) int32 that the bins read, ordered by region, bin, y, x, and weights.

    width: (m,) of each region's map. first_cell: (m,), number of the first cell of its image.
    """
    num_bins = taps.cells.shape[1]
    num_columns, num_rows = taps.counts.view(-1, 2).unbind(1)  # (m,)
    column_starts, row_starts = taps.starts.view(-1, 2).unbind(1)
    region, number = _enumerate(num_bins**2 * num_rows)  # of each line
    rows = num_rows[region]
    bin_number, row = number // rows, number % rows  # in the region, in the bin
    y, x = bin_number // num_bins, bin_number % num_bins
    first_columns, first_rows = taps.cells.view(-1, 2, num_bins).unbind(1)
    cell = first_cell[region] + (first_rows[region, y] + row) * width[region]
    cell += first_columns[region, x]
    weight = taps.weights[row_starts[region] + y * rows + row]
    columns = num_columns[region]
    column_weight = column_starts[region] + x * columns  # where the line's begin

    line, column = _enumerate(columns)  # of each entry
    weights = weight[line] * taps.weights[column_weight[line] + column]
    return (cell[line] + column).int(), weights


def _enumerate(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Number the members of groups: [2, 0, 3] gives [0, 0, 2, 2, 2] and [0, 1, 0, 1, 2]."""
    group = torch.arange(len(counts)).repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    return group, torch.arange(len(group)) - starts[group]
