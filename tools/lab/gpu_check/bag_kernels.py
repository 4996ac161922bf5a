"""Triton kernels for weighted sums of rows (bags) and their gradient; an experiment of `bags`.

A table has P rows of C columns. M groups of K bags with J taps each; a tap is one weighted row of
a sum. There are N = M * K * J taps.

Both kernels add in float32, always in the same order. If C is a multiple of 16, a thread reads 16
bytes at a time: 8 columns of bfloat16, 4 of float32. Nothing else in the project uses the kernels
until `bags` has timed them on a GPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD_SIZE = (8, 256, 4)
"""Bags, columns and warps of a program of `forward`.

Neighbouring bins of a RoI read many of the same cells. A program has several bags, so that it finds
these cells in its cache.
"""
BACKWARD_SIZE = (16, 256, 4, 1)
"""Taps, columns, warps and pipeline stages of a program of `backward`."""


class Taps(NamedTuple):
    """The taps of all bags, sorted by the table row that they read."""

    bags: Tensor
    """(N,) int32: the tap's bag, m * K + k."""
    weights: Tensor
    """(N,) float32."""
    first: Tensor
    """(P + 1,) int64: a row's taps are first[row] to first[row + 1] - 1. The last value is N."""


def forward(
    rows: Tensor,
    idxs: Tensor,
    weights: Tensor,
    *,
    size: tuple[int, int, int] = FORWARD_SIZE,
) -> Tensor:
    """Return the weighted sums (M, K, C) of the rows of each bag.

    Args:
        rows: (P, C), float32 or narrower.
        idxs: (M, K, J) int32, rows of the table. M may be 0.
        weights: (M, K, J) of the rows' dtype.
        size: as FORWARD_SIZE, each a power of two.
    """
    bags, columns, warps = size
    num_bags, width = idxs.shape[0] * idxs.shape[1], rows.shape[1]
    columns = min(columns, triton.next_power_of_2(width))
    sums = rows.new_empty(*idxs.shape[:2], width)
    gather[triton.cdiv(num_bags, bags), triton.cdiv(width, columns)](
        rows.contiguous(),
        idxs.contiguous(),
        weights.contiguous(),
        sums,
        num_bags,
        width,
        TAPS=idxs.shape[2],
        BAGS=bags,
        COLUMNS=columns,
        num_warps=_filled_warps(warps, bags * columns),
    )
    return sums


def plan(idxs: Tensor, weights: Tensor, num_rows: int) -> Taps:
    """Sort the taps of `idxs` and `weights` (M, K, J) by the row that they read, 0 to P - 1."""
    assert idxs.shape[0] * idxs.shape[1] < 2**31, "bags are numbered in int32"
    # stable, so that the taps of a row are always added in the same order
    tap_rows, order = idxs.flatten().sort(stable=True)
    bounds = torch.arange(num_rows + 1, dtype=idxs.dtype, device=idxs.device)
    return Taps(
        bags=(order // idxs.shape[2]).int(),
        # float32, because the GPU's asynchronous copies move at least 4 bytes
        weights=weights.flatten()[order].float(),
        first=torch.searchsorted(tap_rows, bounds),
    )


def backward(
    grad: Tensor, taps: Taps, *, size: tuple[int, int, int, int] = BACKWARD_SIZE
) -> Tensor:
    """Return the gradient (P, C) of the rows for `grad` (M, K, C) and the `plan` of the bags.

    The gradient of a row that no bag reads is 0. `size` is as BACKWARD_SIZE, the first three powers
    of two. With 3 stages the reads of two blocks of taps are under way while a third is added; rows
    with few taps gain nothing from that.
    """
    taps_at_once, columns, warps, stages = size
    num_rows, width = len(taps.first) - 1, grad.shape[2]
    columns = min(columns, triton.next_power_of_2(width))
    sums = grad.new_empty(num_rows, width)
    scatter[num_rows, triton.cdiv(width, columns)](
        grad.contiguous(),
        taps.bags,
        taps.weights,
        taps.first,
        sums,
        width,
        TAPS=taps_at_once,
        COLUMNS=columns,
        STAGES=stages,
        num_warps=_filled_warps(warps, taps_at_once * columns),
    )
    return sums


def _filled_warps(most: int, tile: int) -> int:
    """Return at most `most` warps, such that each thread has 8 values of a tile, 16 bytes."""
    return max(1, min(most, tile // (32 * 8)))


@triton.jit  # type: ignore[untyped-decorator]
def gather(  # noqa: PLR0913 - a kernel's pointers are arguments
    rows: tl.tensor,
    idxs: tl.tensor,
    weights: tl.tensor,
    sums: tl.tensor,
    num_bags: tl.tensor,
    num_columns: tl.tensor,
    TAPS: tl.constexpr,
    BAGS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Sum the weighted rows of BAGS bags in COLUMNS columns; one program does one such tile."""
    # int64: a bag's or row's number times the number of columns may exceed int32
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    # the last tiles reach beyond the bags and columns: masked loads read 0 there
    exists = bag < num_bags
    inside = exists[:, None] & (column < num_columns)[None, :]
    idxs += bag * TAPS  # (bags, taps), row-major, as the weights
    weights += bag * TAPS
    rows += column[None, :]
    total = tl.zeros((BAGS, COLUMNS), dtype=tl.float32)
    for tap in tl.static_range(TAPS):
        row = tl.load(idxs + tap, mask=exists, other=0).to(tl.int64)
        weight = tl.load(weights + tap, mask=exists, other=0.0).to(tl.float32)
        values = tl.load(rows + row[:, None] * num_columns, mask=inside, other=0.0)
        total += values.to(tl.float32) * weight[:, None]
    place = sums + bag[:, None] * num_columns + column[None, :]
    tl.store(place, total.to(sums.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def scatter(  # noqa: PLR0913 - a kernel's pointers are arguments
    grad: tl.tensor,
    bags: tl.tensor,
    weights: tl.tensor,
    first: tl.tensor,
    sums: tl.tensor,
    num_columns: tl.tensor,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Sum the gradients of all taps that read one row, TAPS at a time; see `Taps`.

    One program writes a row's COLUMNS columns, so no atomics are needed.
    """
    row = tl.program_id(0).to(tl.int64)  # int64 here and below, as in `gather`
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    last = tl.load(first + row + 1)
    grad += column[None, :]
    # One sum for each place in a block of taps: the threads of different taps do not wait for each
    # other until the end.
    total = tl.zeros((TAPS, COLUMNS), dtype=tl.float32)
    for start in tl.range(tl.load(first + row), last, TAPS, num_stages=STAGES):
        tap = start + tl.arange(0, TAPS)
        exists = tap < last
        weight = tl.load(weights + tap, mask=exists, other=0.0)
        bag = tl.load(bags + tap, mask=exists, other=0).to(tl.int64)
        inside = exists[:, None] & (column < num_columns)[None, :]
        values = tl.load(grad + bag[:, None] * num_columns, mask=inside, other=0.0)
        total += values.to(tl.float32) * weight[:, None]
    place = sums + row * num_columns + column
    total = tl.sum(total, 0).to(sums.dtype.element_ty)
    tl.store(place, total, mask=column < num_columns)
