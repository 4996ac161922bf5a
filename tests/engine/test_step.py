"""Parts of a training step: copies to the host, the average of weights, several processes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.distributed import World
from engine.schema import LoopConfig
from engine.step import CompiledLosses, HostCopy, WeightAverage, wrap_losses
from tests.engine.test_distributed import torchrun
from tests.engine.toy import ToyBatch, ToyTask


def test_host_copy_keeps_the_values_at_its_creation() -> None:
    values = torch.tensor([True, False])
    copy = HostCopy(values)
    values.logical_not_()
    assert copy.tolist() == [True, False]


@pytest.mark.gpu
def test_reading_a_host_copy_does_not_wait_for_later_work() -> None:
    values = torch.tensor([True, False], device="cuda")
    torch.cuda._sleep(1)  # the first call loads the kernel
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        copy = HostCopy(values)
        torch.cuda._sleep(2_000_000_000)  # about a second
        values.logical_not_()
        assert copy.tolist() == [True, False]
        assert not torch.cuda.current_stream().query(), "the sleep is over: tolist waited for it"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


class CallCounter(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_layers", [2, 40])
def test_an_average_launches_as_much_for_many_tensors_as_for_few(num_layers: int) -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(num_layers)))
    average = WeightAverage(model, 0.99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    expected = [value + 0.9 * 1 for value in average.values.values()]
    skipped = torch.tensor(False)
    with CallCounter() as counter:
        average.update(model, step=0, skipped=skipped)
    detached = 2 * num_layers  # state_dict() makes a view of each tensor
    assert counter.calls - detached < 10
    torch.testing.assert_close(list(average.values.values()), expected)


class VaryingTask(ToyTask):
    """A task whose batches differ in their number of rows."""

    def varying_dims(self, batch: ToyBatch) -> Iterable[tuple[Tensor, int]]:
        """Return the rows of inputs and outputs."""
        return [(batch.inputs, 0), (batch.outputs, 0)]


@pytest.mark.parametrize("kind", [ToyTask, VaryingTask])
def test_one_graph_serves_all_sizes(kind: type[ToyTask], monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any, **_options: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    given: list[dict[str, Any]] = []

    def compile_with(function: Any, *, options: dict[str, Any]) -> Any:
        given.append(options)
        return original(function, backend=backend)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_with)
    torch.compiler.reset()
    task = kind()
    world = World(0, 1, torch.device("cpu"))
    loop = LoopConfig(compile=True, compile_mode="reduce-overhead")
    losses_of = wrap_losses(task, loop, world)
    assert isinstance(losses_of, CompiledLosses)
    layout = {"force_layout_optimization": True} if kind is VaryingTask else {}
    assert given == [{"triton.cudagraphs": True, **layout}]
    for rows in (4, 4, 7, 9):
        batch = task.data.collate([task.data.load(index, index) for index in range(rows)])
        torch.testing.assert_close(losses_of(batch), task.losses(batch))
    # torch makes a second, dynamic graph by itself when a size changes
    assert len(graphs) == (1 if kind is VaryingTask else 2)


OWN_STATISTICS = """
import torch
from torch import nn
from engine.distributed import *
from engine.optim import build_optimizer
from engine.schema import LoopConfig, OptimConfig
from engine.step import training_step, wrap_losses
from tests.engine.toy import ToyTask

class NormTask(ToyTask):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

def run():  # the wrapped module must not outlive the process group: gloo's threads hold it
    with process_group("cpu", timeout_s=60) as world:
        task = NormTask()
        module = wrap_losses(task, LoopConfig(sync_batch_norm=False), world)
        assert not module.will_sync_module_buffers()
        rows = [task.data.load(index, 10 * world.rank + index) for index in range(4)]
        batch = task.data.collate(rows)
        own = batch.inputs.mean(0)
        assert not torch.equal(own, broadcast_object(own)) or world.is_main
        optimizer = build_optimizer(task.model, OptimConfig(), batch_size=8)
        training_step(module, optimizer, [batch], clip_grad_norm=None, stop=False)
        norm = task.model[0]
        torch.testing.assert_close(norm.running_mean, 0.1 * mean_over_ranks(own))
        everywhere = broadcast_object({name: each.clone() for name, each in norm.named_buffers()})
        torch.testing.assert_close(dict(norm.named_buffers()), everywhere, rtol=0, atol=0)
        assert norm.num_batches_tracked == 1

run()
"""


@pytest.mark.extended
def test_own_statistics_of_processes_are_averaged_and_no_buffer_is_broadcast(
    tmp_path: Path,
) -> None:
    done = torchrun(OWN_STATISTICS, tmp_path)
    assert done.returncode == 0, done.stderr
