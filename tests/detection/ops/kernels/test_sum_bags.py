import pytest
import torch
from torch import Tensor

from detection.ops.kernels.sum_bags import (
    gradient_at_once,
    pick,
    sum_at_once,
    sum_bags,
    sum_bags_operator,
)

LENGTHS = (11, 3, 7)


def made(num_tables: int, *, num_groups: int = 9) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Return tables of 4 columns, which of them each group reads, and a matrix (M, 5, 6)."""
    tables = [torch.randn(length, 4) for length in LENGTHS[:num_tables]]
    table_of = torch.arange(num_groups) % num_tables
    lengths = torch.tensor(LENGTHS)[table_of]
    idxs = (torch.rand(num_groups, 5, 6) * lengths[:, None, None]).int()
    return tables, table_of, idxs, torch.randn(num_groups, 5, 6)


def reference(tables: list[Tensor], table_of: Tensor, idxs: Tensor, weights: Tensor) -> Tensor:
    """Bag by bag."""
    groups = zip(table_of.tolist(), idxs.long(), weights, strict=True)
    sums = [(tables[table][rows] * share[..., None]).sum(1) for table, rows, share in groups]
    return torch.stack(sums) if sums else tables[0].new_zeros(0, 5, 4)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("num_groups", [9, 1, 0])
@pytest.mark.parametrize("num_tables", [1, 3])
def test_sums_and_gradients_are_the_reference(num_tables: int, num_groups: int) -> None:
    tables, table_of, idxs, weights = made(num_tables, num_groups=num_groups)
    matrix = (table_of, idxs, weights)
    for table in tables:
        table.requires_grad_()
    expected = reference(tables, *matrix)
    sums = sum_bags(tables, *matrix)
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(
        sum_at_once([t.detach() for t in tables], *matrix), expected.detach()
    )
    grad = torch.randn_like(sums)
    found = torch.autograd.grad(sums, tables, grad)
    at_once = gradient_at_once(grad, *matrix, LENGTHS[:num_tables])
    torch.testing.assert_close(tuple(at_once), found)
    if num_groups:
        torch.testing.assert_close(
            found,
            torch.autograd.grad(expected, tables, grad, allow_unused=True, materialize_grads=True),
        )


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck looks at its copies of tables
@pytest.mark.parametrize("num_tables", [1, 3])
def test_operator_is_registered_as_it_behaves(num_tables: int) -> None:
    tables, *matrix = made(num_tables)
    torch.library.opcheck(
        sum_bags_operator, ([table.requires_grad_() for table in tables], *matrix)
    )


def test_pick_is_indexing() -> None:
    idxs = torch.tensor([[2, 0], [1, 1]])
    assert pick([5, 7, 9], idxs).tolist() == [[9, 5], [7, 7]]
