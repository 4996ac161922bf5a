"""Dataclasses of tensors: moved, copied and listed, also in tuples."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from engine.structures import Movable, tensors_of


@dataclass(frozen=True)
class Leaf(Movable):
    """A tensor and a plain value."""

    values: Tensor
    name: str = "leaf"


@dataclass(frozen=True)
class Tree(Movable):
    """Leaves in tuples, and plain tuples."""

    leaves: tuple[Leaf, ...] = ()
    nested: tuple[tuple[Leaf, Tensor], ...] = ()
    size: tuple[int, int] = (3, 4)
    extra: Leaf | None = None


@pytest.fixture
def tree() -> Tree:
    first, second, third = Leaf(torch.zeros(1)), Leaf(torch.zeros(2), "b"), Leaf(torch.zeros(3))
    return Tree((first, second), ((third, torch.zeros(4)),))


def test_every_tensor_is_found_in_order(tree: Tree) -> None:
    assert [len(tensor) for tensor in tensors_of(tree)] == [1, 2, 3, 4]
    assert [len(tensor) for tensor in tensors_of((tree, tree.leaves[1]))] == [1, 2, 3, 4, 2]
    assert list(tensors_of(((), (3, "a"), None, [torch.zeros(1)]))) == []
    assert list(tensors_of(Tree())) == []


def test_all_are_moved_and_the_rest_is_kept(tree: Tree) -> None:
    moved = tree.to(torch.device("meta"))
    assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}
    assert {tensor.device.type for tensor in tensors_of(tree)} == {"cpu"}
    assert (moved.size, moved.extra, moved.leaves[1].name) == ((3, 4), None, "b")
    assert [type(each) for each in (moved.leaves, moved.nested, moved.nested[0])] == [tuple] * 3
    assert Tree().to(torch.device("meta")) == Tree()


def test_a_clone_shares_no_memory(tree: Tree) -> None:
    copy = tree.clone()
    for tensor in tensors_of(copy):
        tensor.add_(1)
    assert all(bool((tensor == 0).all()) for tensor in tensors_of(tree))
    assert all(bool((tensor == 1).all()) for tensor in tensors_of(copy))
