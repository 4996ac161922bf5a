"""Training step: forward, backward, clipping, check for non-finite values, update.

Nothing in it waits for the device.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import World, any_over_ranks, mean_over_ranks, rank_and_size
from engine.optim import clip_gradients, step_if_finite
from engine.precision import autocast, chosen_precision
from engine.schema import LoopConfig, PrecisionSetting
from engine.sync_norm import has_synchronised_norms, synchronise_norms
from engine.task import Batch, SharesLossCounts, Task, VariesInSize


def memory_layout(config: LoopConfig) -> torch.memory_format:
    """Return the memory format of images and convolution weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def move_task(task: Task, config: LoopConfig, device: torch.device) -> None:
    """Move all networks of a task to the device, in the memory format of `config`."""
    # not task.model alone: an ensemble has more networks
    assert isinstance(task, nn.Module), f"expected a task that is a module, got {type(task)}"
    task.to(device, memory_format=memory_layout(config))  # type: ignore[call-overload]


class LossModule(nn.Module):
    """A task's losses as the forward pass of a module, for torch.compile and DDP."""

    def __init__(self, task: Task, *, device: torch.device, precision: PrecisionSetting) -> None:
        super().__init__()
        self.task = task
        # chosen outside of compilation
        self._autocast = device, chosen_precision(device, precision)

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return named scalar losses (see Task.losses)."""
        with autocast(*self._autocast):
            return self.task.losses(batch)

    def with_counts(self, parts: Sequence[Batch]) -> Sequence[Batch]:
        """Return the parts of a step with their shared loss counts; see `SharesLossCounts`."""
        if len(parts) == 1 or not isinstance(self.task, SharesLossCounts):
            return parts
        with torch.no_grad(), autocast(*self._autocast):
            return self.task.with_counts(parts)


class CompiledLosses(nn.Module):
    """A loss module compiled by `torch.compile`: one graph for all sizes of a task's batches."""

    def __init__(self, losses: LossModule, *, config: LoopConfig) -> None:
        super().__init__()
        self.losses = losses
        options = torch._inductor.list_mode_options(config.compile_mode)
        if isinstance(losses.task, VariesInSize):
            # torch decides the layout for itself only if no size varies. Undecided, torch 2.14
            # makes a constant of each map's size in the backward pass.
            options["force_layout_optimization"] = True
        self._compiled = torch.compile(losses.forward, options=options)

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return named scalar losses (see Task.losses)."""
        task = self.losses.task
        if isinstance(task, VariesInSize):
            # Otherwise the first sizes become constants of the graph, and others compile new ones.
            # Raises if the task's code makes a constant of such a size all the same.
            for tensor, dim in task.varying_dims(batch):
                torch._dynamo.mark_dynamic(tensor, dim)
        losses: Mapping[str, Tensor] = self._compiled(batch)
        return losses


def num_compiled_graphs() -> int:
    """Return how many graphs `torch.compile` has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


# Arguments of DistributedDataParallel: do not broadcast all buffers at each forward pass. They are
# equal on all processes, see `_shared`, and most of them are frozen. Renamed in torch 2.13.
_WITHOUT_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


def wrap_losses(task: Task, config: LoopConfig, world: World) -> nn.Module:
    """Build the loss module: synchronised norms, compiled and wrapped in DDP, as configured."""
    if config.sync_batch_norm:
        synchronise_norms(task.model, world)
    losses = LossModule(task, device=world.device, precision=config.precision)
    module = CompiledLosses(losses, config=config) if config.compile else losses
    if world.size == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **_WITHOUT_BUFFERS,
    )


@dataclass(frozen=True)
class StepResult:
    """Results of a step, on the device; the host reads them later.

    losses: 0-dim, by name, averaged over the accumulated parts of this process. measured: names of
    those that were not minimised. grad_norm: 0-dim, global L2 norm before clipping. status: (2,)
    bool, the same on all processes: whether the step was skipped as not finite, and whether a stop
    was requested. image_ids: (B,) int64 of each part, to name the images of bad steps.
    """

    losses: dict[str, Tensor]
    measured: frozenset[str]
    grad_norm: Tensor
    status: Tensor
    image_ids: list[Tensor]


class HostCopy:
    """Asynchronous copy of a tensor to the host; reading it waits only for the copy itself.

    `Tensor.tolist` on a GPU would wait for all work that was launched since.
    """

    def __init__(self, values: Tensor) -> None:
        # from a GPU into page-locked memory; on a CPU a plain copy
        self._values = values.detach().to("cpu", non_blocking=True, copy=True)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(values.device))

    def tolist(self) -> list[Any]:
        """Wait for the copy and return its values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[Any] = self._values.tolist()
        return values


def training_step(
    losses_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Batch],
    *,
    clip_grad_norm: float | None,
    stop: bool,
) -> StepResult:
    """Update the weights once.

    If a loss or gradient is not finite on any process, the weights, the optimiser state and the
    running statistics of batch norm stay unchanged.

    Args:
        losses_of: from `wrap_losses`.
        optimizer: from `build_optimizer`.
        parts: this process's share of the global batch; the parts' gradients are averaged.
        clip_grad_norm: largest global L2 norm, or None.
        stop: whether this process was asked to stop; `status` shares it with all processes.

    Returns:
        Losses, gradient norm and status, all on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    statistics = _running_statistics(losses_of)
    # kept to undo the forward pass if the step is skipped
    before = [_flat(values) for values in statistics]
    loss_module = next(each for each in losses_of.modules() if isinstance(each, LossModule))
    with_counts = loss_module.with_counts(parts)
    if with_counts is not parts:  # the forward pass for the counts updated the statistics too
        _restore(statistics, before)
    parts = with_counts
    totals: dict[str, Tensor] = {}
    measured: frozenset[str] = frozenset()
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with _gradient_exchange(losses_of, last=last):
            losses = losses_of(part)
            # values without a gradient are measurements
            minimised = [value for value in losses.values() if value.requires_grad]
            # divided here, so that accumulated gradients are the mean over parts
            total = torch.stack(minimised).sum() / len(parts)
            total.backward()
        measured = frozenset(name for name, value in losses.items() if not value.requires_grad)
        for name, value in losses.items():
            share = value.detach() / len(parts)
            totals[name] = totals[name] + share if name in totals else share
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = clip_gradients(parameters, clip_grad_norm)
    # one flag for all losses and gradients (the norm is not finite if any gradient is not)
    finite = torch.isfinite(torch.stack([*totals.values(), grad_norm])).all()
    flags = torch.stack([~finite, torch.full_like(finite, stop)])
    status = any_over_ranks(flags)  # all processes must skip the same steps
    step_if_finite(optimizer, ~status[0])
    # where() on the device instead of an `if` on the host, which would wait
    after = _shared([_flat(values) for values in statistics], losses_of)
    pairs = zip(before, after, strict=True)
    _restore(statistics, [torch.where(status[0], old, new) for old, new in pairs])
    ids = [part.image_ids for part in parts]
    return StepResult(totals, measured, grad_norm, status, ids)


def _running_statistics(module: nn.Module) -> list[list[Tensor]]:
    """Return the buffers of all batch norms in training mode.

    Two lists (or fewer, if one is empty): floating-point statistics, and integer batch counters.
    """
    norms = (each for each in module.modules() if isinstance(each, _BatchNorm) and each.training)
    buffers = [value for norm in norms for value in norm.buffers()]
    kinds = [
        [v for v in buffers if v.is_floating_point() == floating] for floating in (True, False)
    ]
    return [kind for kind in kinds if kind]


def _shared(statistics: Sequence[Tensor], module: nn.Module) -> Sequence[Tensor]:
    """Return running statistics that are equal on all processes, given those of this process.

    Synchronised norms have equal ones already. Otherwise each process has seen its own share of the
    batch, and the statistics are averaged, so that evaluations and checkpoints do not depend on the
    process. Batch counters are equal.
    """
    if rank_and_size()[1] == 1 or has_synchronised_norms(module):
        return statistics
    return [mean_over_ranks(v) if v.is_floating_point() else v for v in statistics]


def _flat(values: Sequence[Tensor]) -> Tensor:
    """Concatenate all values to one vector: one kernel launch instead of one for each norm."""
    return torch.cat([value.flatten() for value in values])


def _restore(statistics: Sequence[list[Tensor]], flat: Sequence[Tensor]) -> None:
    """Copy vectors from `_flat` back into the buffers."""
    for values, old in zip(statistics, flat, strict=True):
        parts = old.split([v.numel() for v in values])
        torch._foreach_copy_(values, [p.view_as(v) for p, v in zip(parts, values, strict=True)])


@contextlib.contextmanager
def _gradient_exchange(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Let DDP exchange gradients only in the last part of a step."""
    if last or not isinstance(module, DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


class WeightAverage:
    """Exponential moving average (EMA) of a model's floating-point parameters and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {
            name: value.detach().clone()
            for name, value in model.state_dict().items()
            if value.is_floating_point()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int, skipped: Tensor) -> None:
        """Update the average after update `step` (from 0); unchanged if `skipped` (0-dim bool)."""
        # The decay starts low, so that the average of a short run forgets the initial weights: the
        # warm-up of TensorFlow's ExponentialMovingAverage(num_updates=step).
        decay = min(self.decay, (1 + step) / (10 + step))
        weight = (1 - decay) * (~skipped).float()  # 0 keeps the average
        state, values = model.state_dict(), list(self.values.values())
        # values += weight * (new - values), in three launches for all tensors together
        steps = torch._foreach_sub([state[name] for name in self.values], values)
        torch._foreach_mul_(steps, weight.to(steps[0].dtype))
        torch._foreach_add_(values, steps)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Replace the model's weights by the average inside the context; restore them after it."""
        state = model.state_dict()
        kept = {name: state[name].clone() for name in self.values}
        _copy(self.values, state)
        try:
            yield
        finally:
            _copy(kept, state)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    torch._foreach_copy_([target[name] for name in source], list(source.values()))
