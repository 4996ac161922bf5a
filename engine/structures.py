"""Dataclasses of tensors: a base class that moves between devices, their tensors, shape checks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Movable:
    """Base of frozen dataclasses of tensors, Movables, tuples of these, or plain values."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Return a copy with every tensor on `device`; other fields are kept."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def clone(self) -> Self:
        """Return a copy with memory of its own for every tensor."""
        return self._map(lambda tensor: tensor.clone())

    def _map(self, function: Callable[[Any], Any]) -> Self:
        changes = {
            field.name: _mapped(getattr(self, field.name), function) for field in fields(self)
        }
        return replace(self, **changes)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_mapped(each, function) for each in value)
    return function(value) if isinstance(value, Tensor | Movable) else value


def tensors_of(value: object) -> Iterator[Tensor]:
    """Yield the tensors of a dataclass and of the dataclasses among its fields, in their order.

    value: a dataclass, a tuple or a tensor, which is yielded itself; other values have no tensors.
    """
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, tuple):
        for each in value:
            yield from tensors_of(each)


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype
) -> None:
    """Raise ValueError unless `tensor` has this shape (None: any length) and dtype.

    name: of the tensor, for the message.
    """
    fits = tensor.dim() == len(shape) and all(
        want is None or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype != dtype:
        expected = f"{tuple('any' if s is None else s for s in shape)} {dtype}"
        raise ValueError(f"{name}: expected {expected}, got {tuple(tensor.shape)} {tensor.dtype}")
