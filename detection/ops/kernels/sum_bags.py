"""Weighted sums of rows picked from tables, with the tables' gradient: a sparse matrix product.

M groups, each of K bags of J rows of one of L tables; C columns, P_l rows of table l.

The fast body runs as custom operators: on a CPU the host looks which groups read which table, and a
compiled graph would break there. Without a compiler and a gradient the function itself is called:
calling an operator imports the compiler, which takes a second of a prediction.
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

    Sums and gradients are added in float32 at least, and always in the same order.

    Args:
        tables: L tensors (P_l, C) of one type, the only ones that get a gradient.
        table_of: (M,) int64, the table that a group reads.
        idxs: (M, K, J) int32, rows of that table.
        weights: (M, K, J) of the tables' type.
    """
    if kernels_kind() == "reference":
        return _sum_picked(tables, table_of, idxs, weights)
    as_operator = torch.compiler.is_compiling() or torch.is_grad_enabled()
    run = sum_bags_operator if as_operator else _sum_bags
    return run(tables, table_of, idxs, weights)


def _sum_picked(
    tables: Sequence[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor
) -> Tensor:
    """The reference: all rows of all bags (M, K, J, C), weighted and summed."""
    wide = torch.promote_types(tables[0].dtype, torch.float32)
    idxs = _in_one_table(idxs, table_of, [len(table) for table in tables])
    rows = torch.cat(list(tables)).to(wide)[idxs]
    return (weights[..., None].to(wide) * rows).sum(2).to(tables[0].dtype)


def _sum_bags(tables: Sequence[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor) -> Tensor:
    if len(tables) == 1 or tables[0].is_cuda:
        return sum_at_once(tables, table_of, idxs, weights)
    # Concatenating the tables would take longer than the sums.
    sums = tables[0].new_empty(*idxs.shape[:2], tables[0].shape[1])
    for groups, table in zip(_readers(table_of, len(tables)), tables, strict=True):
        found = _sum(idxs[groups], weights[groups], table)
        sums.index_copy_(0, groups, found)
    return sums


sum_bags_operator = torch.library.custom_op("resdet::sum_bags", _sum_bags, mutates_args=())
"""The fast body with its gradient."""


@sum_bags_operator.register_fake
def _(tables: Sequence[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor) -> Tensor:
    return tables[0].new_empty(*idxs.shape[:2], tables[0].shape[1])


@torch.library.custom_op("resdet::sum_bags_gradient", mutates_args=())
def _gradient(
    grad: Tensor, table_of: Tensor, idxs: Tensor, weights: Tensor, lengths: Sequence[int]
) -> list[Tensor]:
    """Return the tables' gradients, L tensors (P_l, C), for `grad` (M, K, C); `lengths` are P_l.

    embedding_bag's own gradient would add bfloat16 in bfloat16.
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
    ctx.lengths = [len(table) for table in tables]


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, None, None]:
    return _gradient(grad, *ctx.saved_tensors, ctx.lengths), None, None, None


sum_bags_operator.register_autograd(_backward, setup_context=_save)


def sum_at_once(
    tables: Sequence[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor
) -> Tensor:
    """Do what `sum_bags` does with one bag over all tables, so that the host reads no value."""
    idxs = _in_one_table(idxs, table_of, [len(table) for table in tables])
    return _sum(idxs, weights, torch.cat(list(tables)) if len(tables) > 1 else tables[0])


def gradient_at_once(
    grad: Tensor, table_of: Tensor, idxs: Tensor, weights: Tensor, lengths: Sequence[int]
) -> list[Tensor]:
    """Return the tables' gradients for `grad` in the same way."""
    idxs = _in_one_table(idxs, table_of, lengths)
    whole = _transposed_sum(idxs, weights, grad, sum(lengths))
    if len(lengths) == 1:
        return [whole]
    return [part.clone() for part in whole.split(list(lengths))]  # outputs share no memory


def pick(values: Sequence[int], idxs: Tensor) -> Tensor:
    """Return `values[idxs]` without a copy from the host, for which the device would wait."""
    found = torch.full_like(idxs, values[0])
    for idx, value in enumerate(values[1:], start=1):
        found = torch.where(idxs == idx, value, found)
    return found


def _readers(table_of: Tensor, num_tables: int) -> list[Tensor]:
    """Return for each table the indices of the groups that read it."""
    return [(table_of == table).nonzero()[:, 0] for table in range(num_tables)]


def _in_one_table(idxs: Tensor, table_of: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return `idxs` into the concatenated tables."""
    if len(lengths) == 1:
        return idxs
    starts = list(accumulate(lengths, initial=0))[:-1]
    return idxs + pick(starts, table_of).to(idxs.dtype)[:, None, None]


def _sum(idxs: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """Return (M, K, C) from `idxs` and `weights` (M, K, J) and `rows` (P, C)."""
    sums = F.embedding_bag(
        idxs.flatten(0, 1),
        rows.contiguous(),
        mode="sum",
        per_sample_weights=weights.flatten(0, 1),
    )
    return sums.view(*idxs.shape[:2], rows.shape[1])


def _transposed_sum(idxs: Tensor, weights: Tensor, grad: Tensor, num_rows: int) -> Tensor:
    """Return (P, C), the sums of the bags (M, K, C) that read each row."""
    # Sorting by row makes the transposed matrix: for each row, one bag of the bags that read it.
    users, order = idxs.flatten().sort(stable=True)
    first_user = torch.searchsorted(
        users, torch.arange(num_rows, dtype=idxs.dtype, device=idxs.device), out_int32=True
    )
    return F.embedding_bag(
        (order // idxs.shape[2]).to(idxs.dtype),
        grad.flatten(0, 1).contiguous(),
        first_user,
        mode="sum",
        per_sample_weights=weights.flatten()[order],
    )
