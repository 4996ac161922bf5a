"""Base class for dataclasses of tensors that move between devices, and a check of tensor shapes."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Movable:
    """Base of frozen dataclasses whose fields are tensors, other Movables, or plain values."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Return a copy with every tensor on `device`; other fields are kept."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> Self:
        changes = {
            field.name: function(value) if isinstance(value, Tensor | Movable) else value
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }
        return replace(self, **changes)


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
