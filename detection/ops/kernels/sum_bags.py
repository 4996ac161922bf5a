"""Weighted sums of table rows (embedding bags over several tables), with the tables' gradient.

A bag is a weighted sum of J rows of one table. A group is K bags that read the same table.
M groups, L tables, C columns, P_l rows in table l.

The fast implementation is a custom operator, because on a CPU it reads values (which groups use
which table), and that would break a compiled graph. Without a compiler and a gradient the plain
function is called: calling an operator imports the compiler, which costs a prediction a second.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels import kernels_kind


def sum_bags(tables: Sequence[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sums (M, K, C) of the rows of each bag.

    Sums and gradients are accumulated in float32 or wider, and always in the same order.

    Args:
        tables: L tensors (P_l, C) of one dtype. Only they get a gradient.
        table_of: (M,) int64, the table that a group reads.
        idxs: (M, K, J) int32, rows of that table.
        weights: (M, K, J) of the tables' dtype.
    """
    if kernels_kind() == "reference":
        return _sum_picked(tables, table_of, idxs, weights)
    as_operator = torch.compiler.is_compiling() or torch.is_grad_enabled()
    run = sum_bags_operator if as_operator else _sum_bags
    return run(tables, table_of, idxs, weights)


def _sum_picked(
    tables: Sequence[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor
) -> Tensor:
    """Reference implementation: picks all rows of all bags, (M, K, J, C), and sums them."""
    wide = torch.promote_types(tables[0].dtype, torch.float32)
    idxs = _in_one_table(idxs, table_of, [table.shape[0] for table in tables])
    rows = torch.cat(list(tables)).to(wide)[idxs]
    return (weights[..., None].to(wide) * rows).sum(2).to(tables[0].dtype)


def _sum_bags(tables: Sequence[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor) -> Tensor:
    if len(tables) == 1 or tables[0].is_cuda:
        return sum_at_once(tables, table_of, idxs, weights)
    # On a CPU one table at a time: concatenating the tables would take longer than the sums.
    sums = tables[0].new_empty(*idxs.shape[:2], tables[0].shape[1])
    for groups, table in zip(_readers(table_of, len(tables)), tables, strict=True):
        found = _sum(idxs[groups], weights[groups], table)
        sums.index_copy_(0, groups, found)
    return sums


sum_bags_operator = torch.library.custom_op("resdet::sum_bags", _sum_bags, mutates_args=())
"""The fast implementation as an operator, with its gradient."""


@sum_bags_operator.register_fake
def _(tables: Sequence[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor) -> Tensor:
    return tables[0].new_empty(*idxs.shape[:2], tables[0].shape[1])


@torch.library.custom_op("resdet::sum_bags_gradient", mutates_args=())
def _gradient(
    grad: Tensor, table_of: Tensor, idxs: Tensor, weights: Tensor, lengths: Sequence[int]
) -> list[Tensor]:
    """Return the tables' gradients, L tensors (P_l, C), for `grad` (M, K, C); `lengths` are P_l.

    embedding_bag's own gradient is not used, because it sums bfloat16 in bfloat16.
    """
    if len(lengths) == 1 or grad.is_cuda:
        return gradient_at_once(grad, table_of, idxs, weights, lengths)
    return [
        _transposed_sum(idxs[groups], weights[groups], grad.index_select(0, groups), length)
        for groups, length in zip(_readers(table_of, len(lengths)), lengths, strict=True)
    ]


@_gradient.register_fake
def _(
    grad: Tensor, table_of: Tensor, idxs: Tensor, weights: Tensor, lengths: Sequence[int]
) -> list[Tensor]:
    return [grad.new_empty(length, grad.shape[2]) for length in lengths]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tables, *matrix = inputs
    ctx.save_for_backward(*matrix)
    ctx.lengths = [table.shape[0] for table in tables]


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, None, None]:
    return _gradient(grad, *ctx.saved_tensors, ctx.lengths), None, None, None


sum_bags_operator.register_autograd(_backward, setup_context=_save)


def sum_at_once(
    tables: Sequence[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor
) -> Tensor:
    """Implement `sum_bags` on the concatenated tables, so that the host reads no value."""
    idxs = _in_one_table(idxs, table_of, [table.shape[0] for table in tables])
    return _sum(idxs, weights, torch.cat(list(tables)) if len(tables) > 1 else tables[0])


def gradient_at_once(
    grad: Tensor, table_of: Tensor, idxs: Tensor, weights: Tensor, lengths: Sequence[int]
) -> list[Tensor]:
    """Return the tables' gradients for `grad`, computed on the concatenated tables."""
    idxs = _in_one_table(idxs, table_of, lengths)
    whole = _transposed_sum(idxs, weights, grad, sum(lengths))
    if len(lengths) == 1:
        return [whole]
    # cloned, because the outputs of a custom operator must not share memory
    return [part.clone() for part in whole.split(list(lengths))]


def pick(values: Sequence[int], idxs: Tensor) -> Tensor:
    """Return `values[idxs]` without copying `values` to the device, which would synchronise it."""
    found = torch.full_like(idxs, values[0])
    for idx, value in enumerate(values[1:], start=1):
        found = torch.where(idxs == idx, value, found)
    return found


def _readers(table_of: Tensor, num_tables: int) -> list[Tensor]:
    """Return for each table the indices of the groups that read it."""
    return [(table_of == table).nonzero()[:, 0] for table in range(num_tables)]


def _in_one_table(idxs: Tensor, table_of: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the indices into the concatenated tables for `idxs` (M, K, J) into single tables."""
    if len(lengths) == 1:
        return idxs
    # the first row of each table; [:-1] removes the number of all rows
    starts = list(accumulate(lengths, initial=0))[:-1]
    return idxs + pick(starts, table_of).to(idxs.dtype)[:, None, None]


def _sum(idxs: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Return (M, K, C) from `idxs` and `weights` (M, K, J) and `rows` (P, C)."""
    sums = F.embedding_bag(  # (M * K, J) indices: every row is a bag, so no offsets
        idxs.flatten(0, 1),
        rows.contiguous(),
        mode="sum",
        per_sample_weights=weights.flatten(0, 1),
    )
    return sums.view(*idxs.shape[:2], rows.shape[1])


def _transposed_sum(idxs: Tensor, weights: Tensor, grad: Tensor, num_rows: int) -> Tensor:
    """Return (P, C): for each table row the weighted sum of `grad` (M, K, C) over its bags.

    This is a product with the transposed matrix, again as embedding bags: one bag for each row.
    """
    # Sorting the matrix entries by table row brings the entries of a row together. The sort is
    # stable, so they are always added in the same order.
    entry_rows, order = idxs.flatten().sort(stable=True)  # (M * K * J,)
    return sum_sorted(
        entry_rows,
        # entry m * K * J + k * J + j belongs to bag m * K + k
        (order // idxs.shape[2]).to(idxs.dtype),
        weights.flatten()[order],
        grad.flatten(0, 1),
        num_rows,
    )


def sum_sorted(
    entry_rows: Tensor, bags: Tensor, weights: Tensor, grad: Tensor, num_rows: int
) -> Tensor:
    """Return (P, C): for each table row the sum of weight * `grad` of its entries' bags.

    Args:
        entry_rows: (E,) int32, the row of each entry, in rising order.
        bags: (E,) int32, the bag of each entry.
        weights: (E,) of the dtype of `grad`.
        grad: (bags, C).
        num_rows: P.
    """
    # position of each row's first entry; a row that no bag reads gets an empty range
    first_entry = torch.searchsorted(
        entry_rows,
        torch.arange(num_rows, dtype=entry_rows.dtype, device=entry_rows.device),
        out_int32=True,
    )
    return F.embedding_bag(
        bags, grad.contiguous(), first_entry, mode="sum", per_sample_weights=weights
    )
