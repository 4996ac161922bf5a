import pytest
import torch
from torch import Tensor

from detection.ops.kernels.neighbours import pick_neighbours
from tests.reference import neighbours as reference

pytestmark = pytest.mark.usefixtures("kernels")

PYRAMIDS = {
    "one level": [(3, 5)],
    "three levels": [(4, 6), (2, 3), (1, 1)],
    "narrow": [(5, 1), (1, 4)],
}


def make_maps(name: str, *, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    maps = [torch.randn(2, 3, *size, dtype=dtype) for size in PYRAMIDS[name]]
    return [each.to(memory_format=torch.channels_last).requires_grad_() for each in maps]


def all_cells(name: str) -> Tensor:
    count = sum(height * width for height, width in PYRAMIDS[name])
    return torch.stack([torch.arange(count), torch.randperm(count)])


@pytest.mark.parametrize("name", PYRAMIDS)
def test_is_the_reference(name: str) -> None:
    maps, cells = make_maps(name), all_cells(name)
    found = pick_neighbours(maps, cells)
    expected = [
        torch.stack([reference.around(maps, image, cell) for cell in row])
        for image, row in enumerate(cells.tolist())
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=0)


def test_a_cell_may_come_twice_and_none_at_all() -> None:
    maps = make_maps("three levels")
    twice = pick_neighbours(maps, torch.tensor([[7, 7], [30, 0]]))
    torch.testing.assert_close(twice[0, 0], twice[0, 1])
    assert pick_neighbours(maps, torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 9, 3)


@pytest.mark.extended
@pytest.mark.parametrize("name", PYRAMIDS)
def test_gradient(name: str) -> None:
    maps, cells = make_maps(name, dtype=torch.float64), all_cells(name)[:, :7]
    assert torch.autograd.gradcheck(lambda *levels: pick_neighbours(levels, cells), maps)
