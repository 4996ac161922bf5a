"""A training step asks nothing whose answer lies on the device, and compiles as a whole.

Seen from the CPU: which operators a step calls, and, by tensors that have shapes and a device but
no values, what a CUDA device would refuse. `test_gpu.py` has CUDA itself watch.
"""

import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from detection.commands.tasks import build_task
from detection.ops.nms import nms_operator
from engine.distributed import process_group
from tests.detection.localization.tiny_localizer import (
    regions_config,
    tiny_config,
    train_first_stage,
    write_tiny_imagenet,
)
from tests.detection.tasks.tiny import NECKS, make_step, tiny_task

KINDS = ("detection", "segmentation")
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


class WaitSpotter(TorchDispatchMode):
    """Notes operators that would wait for a CUDA device; inside the project's own it sees none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            isinstance(idxs, Tensor) and idxs.dtype == torch.bool
            for idxs in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        if name in WAITING or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.mark.extended
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neck", [pytest.param("c4", marks=pytest.mark.slow), "fpn"])
def test_a_training_step_calls_nothing_that_waits(
    root: Path, neck: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a compiled graph and on a device: on a CPU both are free to look at values.
    monkeypatch.setattr("detection.models.proposals.nms_keep", nms_operator)
    monkeypatch.setattr("detection.tasks.segmentation.most_foreground", lambda _, limit: limit)
    task, batch = tiny_task(root, neck, task=kind)
    with process_group("cpu", timeout_s=60) as world:
        step = make_step(task, batch, world)
        with WaitSpotter() as spotter:
            step(0)
    assert spotter.found == []
    assert spotter.calls > 1000


def to_fake_device(values: Any) -> Any:
    """Return a tensor without values on a CUDA device for each one of a batch."""
    if isinstance(values, Tensor):
        return torch.empty(values.shape, dtype=values.dtype, device="cuda")
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


def make_case(root: Path, kind: str, neck: str) -> tuple[Any, Any]:
    """Return a task and a training batch."""
    if kind in KINDS:
        return tiny_task(root, neck, task=kind)
    if kind == "localization":
        task = build_task(tiny_config(write_tiny_imagenet(root)))
    else:
        task = build_task(regions_config(train_first_stage(root)))
    data: Any = task.train_data()
    return task, data.collate([data.load(index, index) for index in range(4)])


@pytest.mark.extended
@with_cuda_types
@pytest.mark.usefixtures("fast_kernels")  # torchvision's suppression waits
@pytest.mark.parametrize(
    ("kind", "neck"),
    [*product(KINDS, NECKS), ("localization", ""), ("localization_regions", "")],
)
def test_losses_need_nothing_from_the_host(
    tmp_path: Path, kind: str, neck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, **_: Any) -> Tensor:
        return torch.empty_like(valid)

    monkeypatch.setattr("detection.ops.nms.find_kernel", lambda _: keep)
    task, batch = make_case(tmp_path, kind, neck)
    # torch 2.14 stumbles over such tensors, which are where they should be
    monkeypatch.setattr(nn.Module, "to", lambda module, _: module)
    with FakeTensorMode():
        for model in (task.model, *getattr(task, "_first", ())):
            move_to_fake_device(model)
        on_device = to_fake_device(batch)
        with WaitSpotter() as spotter:
            losses = task.losses(on_device)
    assert spotter.found == []
    assert {(value.device.type, value.shape) for value in losses.values()} == {("cuda", ())}


@with_cuda_types
def test_a_tensor_without_values_tells_none() -> None:
    with FakeTensorMode():
        values = torch.empty(3, device="cuda")
        with pytest.raises(DataDependentOutputException):
            bool(values.sum() > 0)
        with pytest.raises(RuntimeError, match="device"):
            values + torch.zeros(3)


def test_the_spotter_sees() -> None:
    values = torch.arange(3.0)
    with WaitSpotter() as spotter:
        bool(values.sum() > 0)
        values[values > 1]
        values[torch.tensor([0, 2])]
    assert spotter.found == ["_local_scalar_dense", "index", "lift_fresh"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neck", NECKS)
def test_forward_and_backward_compile_into_one_graph(root: Path, neck: str, kind: str) -> None:
    task, batch = tiny_task(root, neck, task=kind)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    compiled = torch.compile(task.losses, backend="aot_eager", fullgraph=True)
    found, expected = compiled(batch), task.losses(batch)
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(torch.stack(list(losses.values())).sum(), parameters)
        for losses in (found, expected)
    ]
    torch.testing.assert_close(*gradients)
