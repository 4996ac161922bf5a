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


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_is_the_reference(name: str, radius: int) -> None:
    maps, cells = make_maps(name), all_cells(name)
    found, inside = pick_neighbours(maps, cells, radius=radius)
    for image, row in enumerate(cells.tolist()):
        for sample, cell in enumerate(row):
            expected, exists = reference.around(maps, image, cell, radius=radius)
            torch.testing.assert_close(found[image, sample], expected, rtol=0, atol=0)
            assert torch.equal(inside[image, sample], exists)


def test_a_cell_may_come_twice_and_none_at_all() -> None:
    maps = make_maps("three levels")
    twice, _ = pick_neighbours(maps, torch.tensor([[7, 7], [30, 0]]))
    torch.testing.assert_close(twice[0, 0], twice[0, 1])
    none, _ = pick_neighbours(maps, torch.zeros(2, 0, dtype=torch.int64))
    assert none.shape == (2, 0, 3, 3, 3)


@pytest.mark.extended
@pytest.mark.parametrize("name", PYRAMIDS)
def test_gradient(name: str) -> None:
    maps, cells = make_maps(name, dtype=torch.float64), all_cells(name)[:, :7]

    def pick(*levels: Tensor) -> Tensor:
        return pick_neighbours(levels, cells, radius=2)[0]

    assert torch.autograd.gradcheck(pick, maps)
