"""Triton kernels for weighted sums of rows (bags) and their gradient; an experiment of `bags`.

P rows of C columns; M groups of K bags with J taps each. A tap is one weighted row of a sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _gather(  # noqa: PLR0913 - a kernel's pointers are arguments
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
    bag = tl.program_id(0).to(tl.int64) * BAGS + tl.arange(0, BAGS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    # the last tiles reach beyond the bags and columns: masked loads read 0 there
    exists = bag < num_bags
    inside = exists[:, None] & (column < num_columns)[None, :]
    total = tl.zeros((BAGS, COLUMNS), dtype=tl.float32)
    for tap in tl.static_range(TAPS):
        # idxs and weights are (bags, taps), row-major
        row = tl.load(idxs + bag * TAPS + tap, mask=exists, other=0).to(tl.int64)
        weight = tl.load(weights + bag * TAPS + tap, mask=exists, other=0.0).to(tl.float32)
        place = rows + row[:, None] * num_columns + column[None, :]
        total += tl.load(place, mask=inside, other=0.0).to(tl.float32) * weight[:, None]
    place = sums + bag[:, None] * num_columns + column[None, :]
    tl.store(place, total.to(sums.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _scatter(  # noqa: PLR0913 - a kernel's pointers are arguments
    grad: tl.tensor,
    order: tl.tensor,
    weights: tl.tensor,
    first_user: tl.tensor,
    sums: tl.tensor,
    num_columns: tl.tensor,
    TAPS: tl.constexpr,
    USERS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Sum the gradients of all taps that read one row, USERS taps at a time.

    `order` lists the taps sorted by row; those of a row are first_user[row] to
    first_user[row + 1] - 1. So each row is written by one program, without atomics.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < num_columns
    last = tl.load(first_user + row + 1)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(tl.load(first_user + row), last, USERS):
        user = start + tl.arange(0, USERS)
        exists = user < last
        tap = tl.load(order + user, mask=exists, other=0)
        weight = tl.load(weights + tap, mask=exists, other=0.0).to(tl.float32)
        # the bag of a tap, whose gradient is a row of `grad`
        place = grad + (tap // TAPS).to(tl.int64)[:, None] * num_columns + column[None, :]
        values = tl.load(place, mask=exists[:, None] & inside[None, :], other=0.0)
        total += tl.sum(values.to(tl.float32) * weight[:, None], 0)
    tl.store(sums + row * num_columns + column, total.to(sums.dtype.element_ty), mask=inside)


def forward(
    rows: Tensor, idxs: Tensor, weights: Tensor, bags: int = 8, columns: int = 256, warps: int = 4
) -> Tensor:
    """Return the weighted sums (M, K, C) of the rows (P, C) at `idxs` (M, K, J)."""
    num_bags, width = idxs.shape[0] * idxs.shape[1], rows.shape[1]
    sums = rows.new_empty(*idxs.shape[:2], width)
    columns = min(columns, triton.next_power_of_2(width))
    grid = (triton.cdiv(num_bags, bags), triton.cdiv(width, columns))
    sizes = {"TAPS": idxs.shape[2], "BAGS": bags, "COLUMNS": columns, "num_warps": warps}
    _gather[grid](rows, idxs, weights, sums, num_bags, width, **sizes)
    return sums


def plan(idxs: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the taps sorted by the row that they read, and the first one of each row, (P + 1,)."""
    # users: the row of each tap, ascending; its first position per row gives the bounds
    users, order = idxs.flatten().sort(stable=True)
    bounds = torch.arange(num_rows + 1, dtype=idxs.dtype, device=idxs.device)
    return order, torch.searchsorted(users, bounds, out_int32=True)


def backward(
    weights: Tensor,
    grad: Tensor,
    planned: tuple[Tensor, Tensor],
    users: int = 8,
    columns: int = 512,
    warps: int = 4,
) -> Tensor:
    """Return the gradient (P, C) of the rows, from `grad` (M, K, C) and `weights` (M, K, J)."""
    order, first_user = planned
    num_rows, width = len(first_user) - 1, grad.shape[2]
    sums = grad.new_empty(num_rows, width)
    columns = min(columns, triton.next_power_of_2(width))
    grid = (num_rows, triton.cdiv(width, columns))
    sizes = {"TAPS": weights.shape[2], "USERS": users, "COLUMNS": columns, "num_warps": warps}
    _scatter[grid](grad, order, weights, first_user, sums, width, **sizes)
    return sums
