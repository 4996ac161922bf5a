"""A CUDA device that is not there: tensors that have a shape and a device but no values.

With torch's FakeTensorMode code runs as on a CUDA device, up to the first question whose answer is
a value. What mixes devices, or asks, raises.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

with_cuda_types = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="torch is built without CUDA"
)
WAITING = {
    "_local_scalar_dense",  # item, tolist, bool, int, float
    "_unique2",
    "bincount",
    "equal",
    "lift_fresh",  # a tensor made from Python values: a copy from memory that is not page-locked
    "masked_select",
    "nonzero",
    "repeat_interleave",  # by a tensor of repeats
    "unique_consecutive",
    "unique_dim",
}
"""Operators that on a CUDA device wait for it."""
TO_THE_HOST = "copy to the host"
CPU = torch.device("cpu")


class WaitSpotter(TorchDispatchMode):
    """Counts operators, and notes those that would wait for a CUDA device.

    Inside the project's own operators it sees nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name == "_to_copy" and args[0].is_cuda and (kwargs or {}).get("device") == CPU:
            self.found.append(TO_THE_HOST)
        masks = name.startswith("index") and any(
            isinstance(idxs, Tensor) and idxs.dtype == torch.bool
            for idxs in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        if name in WAITING or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_cuda(*, bf16: bool = False) -> Iterator[None]:
    """Make tensors without values; with `bf16` under autocast, which needs a GPU otherwise."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", bf16)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    # torch 2.14 stumbles over moving tensors without values, which are where they should be
    stay = patch.object(nn.Module, "to", lambda module, *_, **__: module)
    try:
        with FakeTensorMode(), stay:
            yield
    finally:
        torch.set_autocast_enabled("cuda", before)
        torch.clear_autocast_cache()


def to_fake_device(values: Any) -> Any:
    """Return a tensor without values on a CUDA device for each one of a batch."""
    if isinstance(values, Tensor):
        return torch.empty(values.shape, dtype=values.dtype, device="cuda")
    if isinstance(values, tuple):
        return tuple(map(to_fake_device, values))
    if not dataclasses.is_dataclass(values):
        return values
    fields = [field.name for field in dataclasses.fields(values)]
    changes = {name: to_fake_device(getattr(values, name)) for name in fields}
    return dataclasses.replace(values, **changes)  # type: ignore[type-var]


def move_to_fake_device(model: nn.Module) -> None:
    """Do what `.to` cannot with such tensors; what is neither parameter nor buffer stays."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(to_fake_device(value), value.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, to_fake_device(buffer))
