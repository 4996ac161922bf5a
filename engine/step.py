"""One training step: forward, backward, clip, finite check, update; no wait for the device."""

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
from engine.task import Batch, CountsParts, Task


def memory_layout(config: LoopConfig) -> torch.memory_format:
    """Return the layout of images and convolution weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


class LossModule(nn.Module):
    """What is compiled and what DDP wraps: a task's losses as a forward pass."""

    def __init__(self, task: Task, *, device: torch.device, precision: PrecisionSetting) -> None:
        super().__init__()
        self.task = task
        self._autocast = (device, chosen_precision(device, precision))  # not while it is compiled

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return named scalar losses."""
        with autocast(*self._autocast):
            return self.task.losses(batch)

    def with_counts(self, parts: Sequence[Batch]) -> Sequence[Batch]:
        """Return the parts of a step, with what they divide by in common (see CountsParts)."""
        if len(parts) == 1 or not isinstance(self.task, CountsParts):
            return parts
        with torch.no_grad(), autocast(*self._autocast):
            return self.task.with_counts(parts)


def wrap_losses(task: Task, config: LoopConfig, world: World) -> nn.Module:
    """Make the loss module, compiled and distributed as the config and the world say."""
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
    """Values on the device, read by the host later.

    losses: each averaged over the accumulated parts of this process. measured: the names of those
    that were not minimised. grad_norm: global L2 norm before clipping.
    status: (2,) bool, the same on all processes: whether the step was skipped as not finite,
    whether somebody asked to stop. image_ids: the images of each part, for naming them.
    """

    losses: dict[str, Tensor]
    measured: frozenset[str]
    grad_norm: Tensor
    status: Tensor
    image_ids: list[Tensor]


class HostCopy:
    """Values on their way to the host: who reads them waits for them, not for what came after.

    `tolist` of a tensor on a GPU waits for all that was launched since.
    """

    def __init__(self, values: Tensor) -> None:
        # from a GPU to page-locked memory; on a CPU a copy as well
        self._values = values.detach().to("cpu", non_blocking=True, copy=True)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(values.device))

    def tolist(self) -> list[Any]:
        """Wait for the values and return them."""
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

    A loss or gradient that is not finite leaves weights, optimiser and the moving statistics of
    batch norm as they were.

    Args:
        losses_of: made by `wrap_losses`.
        optimizer: made by `build_optimizer`.
        parts: this process's share of the global batch, whose gradients are averaged.
        clip_grad_norm: largest global norm, or None.
        stop: whether this process was asked to stop; all learn of it through `status`.
    """
    optimizer.zero_grad(set_to_none=True)
    statistics = _moving_statistics(losses_of)
    before = [_flat(values) for values in statistics]
    inner = next(each for each in losses_of.modules() if isinstance(each, LossModule))
    shared = inner.with_counts(parts)
    if shared is not parts:  # what was computed for the counts moved the statistics too
        _put_back(statistics, before)
    parts = shared
    totals: dict[str, Tensor] = {}
    measured: frozenset[str] = frozenset()
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with _synchronised(losses_of, last=last):
            losses = losses_of(part)
            minimised = [value for value in losses.values() if value.requires_grad]
            total = torch.stack(minimised).sum() / len(parts)
            total.backward()
        measured = frozenset(name for name, value in losses.items() if not value.requires_grad)
        for name, value in losses.items():
            share = value.detach() / len(parts)
            totals[name] = totals[name] + share if name in totals else share
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = clip_gradients(parameters, clip_grad_norm)
    finite = torch.isfinite(torch.stack([*totals.values(), grad_norm])).all()
    flags = torch.stack([~finite, torch.full_like(finite, stop)])
    status = any_over_ranks(flags)
    step_if_finite(optimizer, ~status[0])
    kept = zip(statistics, before, strict=True)
    _put_back(statistics, [torch.where(status[0], old, _flat(values)) for values, old in kept])
    ids = [part.image_ids for part in parts]
    return StepResult(totals, measured, grad_norm, status, ids)


def _moving_statistics(module: nn.Module) -> list[list[Tensor]]:
    """Return the buffers of all batch norms in training: the floating-point ones, the counters."""
    norms = (each for each in module.modules() if isinstance(each, _BatchNorm) and each.training)
    buffers = [value for norm in norms for value in norm.buffers()]
    kinds = [
        [v for v in buffers if v.is_floating_point() == floating] for floating in (True, False)
    ]
    return [kind for kind in kinds if kind]


def _flat(values: Sequence[Tensor]) -> Tensor:
    """Return one vector of all values: one launch on a GPU, not one for each of a hundred norms."""
    return torch.cat([value.flatten() for value in values])


def _put_back(statistics: Sequence[list[Tensor]], flat: Sequence[Tensor]) -> None:
    """Copy what `_flat` gave into the buffers."""
    for values, old in zip(statistics, flat, strict=True):
        parts = old.split([v.numel() for v in values])
        torch._foreach_copy_(values, [p.view_as(v) for p, v in zip(parts, values, strict=True)])


@contextlib.contextmanager
def _synchronised(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Let DDP exchange gradients in the last part alone."""
    if last or not isinstance(module, DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


class WeightAverage:
    """Exponential moving average of a model's floating-point parameters and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {
            name: value.detach().clone()
            for name, value in model.state_dict().items()
            if value.is_floating_point()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int, skipped: Tensor) -> None:
        """Move towards the model; not at all where `skipped` (0-dim bool) holds."""
        # The average starts short so that a short run is not held at its random start.
        decay = min(self.decay, (1 + step) / (10 + step))
        weight = (1 - decay) * (~skipped).float()
        state = model.state_dict()
        for name, value in self.values.items():
            value.lerp_(state[name], weight.to(value.dtype))

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Put the average in the model's place for a while."""
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
