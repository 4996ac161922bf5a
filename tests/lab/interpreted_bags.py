"""Run by test_bag_kernels.py in Triton's interpreter: random bags against sums in float64.

The legend is that of bag_kernels.py. A case has L tables of P_l rows; the kernels get one table,
their concatenation.
"""

import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tools.lab.gpu_check.bag_kernels import (
    BACKWARD_SIZE,
    FORWARD_SIZE,
    Taps,
    backward,
    forward,
    plan,
)

DTYPES = (torch.float32, torch.bfloat16)
# small tiles, so that tiny cases have several tiles and several blocks of taps
FORWARD_SIZES = ((4, 8, 1), (8, 8, 1), FORWARD_SIZE)
BACKWARD_SIZES = ((4, 8, 1, 1), (8, 8, 1, 3), BACKWARD_SIZE)


class Case(NamedTuple):
    """Inputs of both kernels."""

    tables: list[Tensor]
    """L tables (P_l, C)."""
    table_of: Tensor
    """(M,), the table that a group reads."""
    idxs: Tensor
    """(M, K, J) int32, rows of that table."""
    weights: Tensor
    grad: Tensor
    """(M, K, C)."""


def made(
    rng: np.random.Generator,
    *,
    lengths: list[int],
    groups: int,
    bags: int,
    taps: int,
    columns: int,
    read_rows: float = 1.0,
) -> Case:
    """Return a random case; only the first `read_rows` of each table are read, at least one."""
    dtype = DTYPES[rng.integers(2)]

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape)).to(dtype)

    table_of = rng.integers(len(lengths), size=groups)
    limits = np.ceil(np.array(lengths)[table_of] * read_rows)
    idxs = (rng.random((groups, bags, taps)) * limits[:, None, None]).astype(np.int32)
    weights = normal(groups, bags, taps)
    weights[torch.from_numpy(rng.random(weights.shape) < 0.1)] = 0
    return Case(
        [normal(length, columns) for length in lengths],
        torch.from_numpy(table_of),
        torch.from_numpy(idxs),
        weights,
        normal(groups, bags, columns),
    )


def any_case(rng: np.random.Generator) -> Case:
    """Return a tiny case: the interpreter takes a third of a millisecond for each operation."""
    return made(
        rng,
        lengths=[int(length) for length in rng.integers(1, 4, size=rng.integers(1, 4))],
        groups=int(rng.integers(4)),
        bags=int(rng.integers(1, 4)),
        taps=1 + int(16 * rng.random() ** 2),  # 1 to 16, more often few
        columns=int(rng.choice([1, 3, 8, 13])),
        read_rows=float(rng.choice([0.0, 0.5, 1.0])),  # 0.0: all taps of a table read one row
    )


def reference(case: Case) -> tuple[Tensor, list[Tensor]]:
    """Return the sums (M, K, C) and the tables' gradients, float64, tap by tap."""
    tables = [table.double() for table in case.tables]
    weights, grad = case.weights.double(), case.grad.double()
    sums, grads = torch.zeros_like(grad), [torch.zeros_like(table) for table in tables]
    for group, bag, tap in np.ndindex(*case.idxs.shape):
        table, row = int(case.table_of[group]), int(case.idxs[group, bag, tap])
        weight = weights[group, bag, tap]
        sums[group, bag] += weight * tables[table][row]
        grads[table][row] += weight * grad[group, bag]
    return sums, grads


def check(
    case: Case,
    forward_size: tuple[int, int, int],
    backward_size: tuple[int, int, int, int],
) -> None:
    """Compare both kernels with the reference."""
    lengths = [len(table) for table in case.tables]
    starts = torch.tensor([0, *np.cumsum(lengths)[:-1]])
    idxs = (case.idxs + starts[case.table_of][:, None, None]).int()
    rows = torch.cat(case.tables)
    found = forward(rows, idxs, case.weights, size=forward_size)
    taps = plan(idxs, case.weights, len(rows))
    found_grad = backward(case.grad, taps, size=backward_size)
    expected, expected_grads = reference(case)
    # The same sums of absolute values: an error of float32 sums is relative to these.
    absolute = [[part.abs() for part in parts] for parts in (case.tables, case[3:])]
    scale, scale_grads = reference(Case(absolute[0], case.table_of, case.idxs, *absolute[1]))
    compare(found, expected, scale)
    compare(found_grad, torch.cat(expected_grads), torch.cat(scale_grads))


def compare(found: Tensor, expected: Tensor, scale: Tensor) -> None:
    """Compare in units of `scale`; a sum of nothing must be exactly 0."""
    assert not found[scale == 0].any()
    scale = scale.clamp(min=1e-30)
    # Triton's interpreter does not round to bfloat16, but cuts the mantissa to 7 bits.
    rtol = 2**-7 if found.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=rtol, atol=1e-6)


def check_offsets_beyond_int32() -> None:
    """Read the last of so many rows that its elements begin beyond 2**31."""
    last = 2**21
    # 4 GiB of addresses, but memory only for the row that is written
    rows = torch.empty(last + 1, 1024, dtype=torch.bfloat16)
    rows[last] = 3
    one = torch.ones(1)
    found = forward(rows, torch.tensor([[[last]]], dtype=torch.int32), one.view(1, 1, 1))
    assert found.eq(3).all()
    # as a gradient: one tap of the last bag, read by the only row of a table
    taps = Taps(torch.tensor([last], dtype=torch.int32), one, torch.tensor([0, 1]))
    assert backward(rows[None], taps).eq(3).all()


def main(count: int) -> None:
    """Check one row that 1,600 taps read, large offsets, and `count` tiny cases."""
    torch.set_num_threads(1)
    check_offsets_beyond_int32()
    crowd = made(
        np.random.default_rng(0),
        lengths=[3],
        groups=20,
        bags=5,
        taps=16,
        columns=10,
        read_rows=0.0,
    )
    cases = [crowd, *(any_case(np.random.default_rng(seed)) for seed in range(count))]
    for seed, case in enumerate(cases):
        sizes = FORWARD_SIZES[seed % 3 - 1], BACKWARD_SIZES[seed // 3 % 3 - 1]
        try:
            check(case, *sizes)
        except AssertionError as error:
            raise AssertionError(f"case {seed}: {[list(part) for part in case.idxs]}") from error


if __name__ == "__main__":
    main(int(sys.argv[1]))
