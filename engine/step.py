"""Training step: forward, backward, clipping, check for non-finite values, update.

Nothing in it waits for the device.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import World, any_over_ranks
from engine.optim import clip_gradients, step_if_finite
from engine.precision import autocast, chosen_precision
from engine.schema import LoopConfig, PrecisionSetting
from engine.sync_norm import synchronise_norms
from engine.task import Batch, SharesLossCounts, Task


def memory_layout(config: LoopConfig) -> torch.memory_format:
    """Return the memory format of images and convolution weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


class LossModule(nn.Module):
    """A task's losses as the forward pass of a module, for torch.compile and DDP."""

    def __init__(self, task: Task, *, device: torch.device, precision: PrecisionSetting) -> None:
        super().__init__()
        self.task = task
        self._autocast = (
            device,
            chosen_precision(device, precision),
        )  # chosen outside of compilation

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


def wrap_losses(task: Task, config: LoopConfig, world: World) -> nn.Module:
    """Build the loss module: synchronised norms, compiled and wrapped in DDP, as configured."""
    if config.sync_batch_norm:
        synchronise_norms(task.model, world)
    module: nn.Module = LossModule(task, device=world.device, precision=config.precision)
    if config.compile:
        module = torch.compile(module, mode=config.compile_mode)  # type: ignore[assignment]
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        module = DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
    return module


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
    pairs = zip(statistics, before, strict=True)
    _restore(statistics, [torch.where(status[0], old, _flat(values)) for values, old in pairs])
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
        state = model.state_dict()
        for name, value in self.values.items():
            value.lerp_(state[name], weight.to(value.dtype))

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
    for name, value in source.items():
        target[name].copy_(value)
