"""Optimiser, learning-rate schedule, gradient clipping, and updates that skip non-finite gradients.

The fused kernels run on the CPU and on GPUs. They read state tensors by their raw memory, so each
must have the same memory layout as its parameter. Therefore build the optimiser after the module is
on its device and in its memory format, and restore its state with `load_optimizer_state`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from engine.errors import UserError
from engine.schema import OptimConfig, ScheduleConfig
from engine.task import HasStages

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(module: nn.Module, config: OptimConfig, *, batch_size: int) -> Optimizer:
    """Build the optimiser for the parameters that require a gradient.

    Parameter groups differ in weight decay and learning rate; each stores its peak rate as
    `base_lr`, and as `depth` how far its parameters are from the heads (see `_depths`).

    Args:
        module: float32 parameters.
        config: kind, rates and decay.
        batch_size: images per update over all processes, for `reference_batch_size`.

    Raises:
        UserError: no parameter is trained, or `backbone_lr_factor` or `layer_decay` is set without
            a trained backbone.
    """
    norms, depths = _norm_parameters(module), _depths(module, config)
    groups: dict[tuple[bool, int], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # 1-D parameters are biases and scales and shifts of norms; weights have 2 or more axes.
            decays = config.decay_norm_and_bias or parameter.ndim > 1
            if parameter in norms and config.decay_norm is not None:
                decays = config.decay_norm
            groups.setdefault((decays, depths[name]), []).append((name, parameter))
    if not groups:
        raise UserError("model: expected trainable parameters, got none (all stages are frozen)")
    if all(depth == 0 for _, depth in groups):
        _check_no_backbone(config)

    lr = effective_lr(config, batch_size)
    factor = config.backbone_lr_factor if config.layer_decay is None else config.layer_decay
    param_groups: list[dict[str, Any]] = []
    for (decays, depth), named in groups.items():
        rate = lr * factor**depth
        decay = config.weight_decay if decays else 0.0
        group = {"params": named, "lr": rate, "base_lr": rate, "weight_decay": decay}
        param_groups.append({**group, "depth": depth})
    # fused kernels are fast and can skip an update on the device (see step_if_finite)
    if config.kind == "adamw":
        return AdamW(param_groups, lr=lr, betas=config.betas, fused=True)
    optimizer = SGD(param_groups, lr=lr, momentum=config.momentum, fused=True)
    if config.momentum > 0:
        # Without this, skipping the very first update would leave the momentum uninitialised.
        for _, parameter in _named_parameters(optimizer):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _norm_parameters(module: nn.Module) -> set[nn.Parameter]:
    """Return the weights and biases of all norm layers."""
    norms = (each for each in module.modules() if isinstance(each, _NORMS))
    return {parameter for norm in norms for parameter in norm.parameters(recurse=False)}


def _depths(module: nn.Module, config: OptimConfig) -> dict[str, int]:
    """Return how far each parameter is from the heads, by name.

    With `layer_decay`: 0 outside of the stages of a backbone, 1 in the last stage, 2 in the one
    before. Otherwise 1 for parameters with `backbone` as a part of their dotted name.
    """
    if config.layer_decay is None:
        return {name: int("backbone" in name.split(".")) for name, _ in module.named_parameters()}
    depth_of = {
        parameter: depth
        for backbone in module.modules()
        if isinstance(backbone, HasStages)
        for depth, stage in enumerate(reversed(backbone.stages()), start=1)
        for layer in stage
        for parameter in layer.parameters()
    }
    return {name: depth_of.get(parameter, 0) for name, parameter in module.named_parameters()}


def _check_no_backbone(config: OptimConfig) -> None:
    """Raise UserError if a key asks for another rate in the backbone, of which nothing trains."""
    for key, value, expected in (
        ("backbone_lr_factor", config.backbone_lr_factor, 1.0),
        ("layer_decay", config.layer_decay, None),
    ):
        if value != expected:
            wanted = "null" if expected is None else f"{expected:g}"
            raise UserError(
                f"optim.{key}: expected {wanted} (no backbone is trained), got {value:g}"
            )


def effective_lr(config: OptimConfig, batch_size: int) -> float:
    """Return the peak learning rate for `batch_size` images per update."""
    if config.reference_batch_size is None:
        return config.lr
    return config.lr * batch_size / config.reference_batch_size


def lr_note(config: OptimConfig, batch_size: int) -> str | None:
    """Return a log line if the rate is scaled with the batch size, otherwise None."""
    if config.reference_batch_size in (None, batch_size):
        return None
    return (
        f"learning rate {effective_lr(config, batch_size):g} = optim.lr {config.lr:g} "
        f"x loop.batch_size {batch_size} / optim.reference_batch_size {config.reference_batch_size}"
    )


def layer_decay_note(optimizer: Optimizer, config: OptimConfig) -> str | None:
    """Return a log line with the peak rate of each stage, or None without `layer_decay`."""
    if config.layer_decay is None:
        return None
    rates = {group["depth"]: group["base_lr"] for group in optimizer.param_groups}
    listed = ", ".join(f"{rates[depth]:g} at {depth}" for depth in sorted(rates))
    return (
        f"optim.layer_decay {config.layer_decay:g}: peak learning rates by number of stages to the "
        f"heads: {listed}"
    )


def spans_run(config: ScheduleConfig) -> bool:
    """Return whether a schedule depends on `loop.max_steps`."""
    has_fractions = bool(config.milestones) and all(each < 1 for each in config.milestones)
    return config.kind == "cosine" or (config.kind == "steps" and has_fractions)


def lr_factor(step: int, config: ScheduleConfig, *, max_steps: int, drops: int = 0) -> float:
    """Return the learning rate of update `step`, relative to the peak.

    Args:
        step: in 0..max_steps-1.
        config: shape of the schedule.
        max_steps: `loop.max_steps`.
        drops: how often the rate has dropped so far; used by `plateau` only.
    """
    if config.kind == "steps":
        are_fractions = all(milestone < 1 for milestone in config.milestones)
        scale = max_steps if are_fractions else 1  # milestones in steps
        factor = config.gamma ** sum(step >= milestone * scale for milestone in config.milestones)
    elif config.kind == "cosine":
        # progress is 0 at the end of the warm-up and 1 at the last step
        length = max(max_steps - 1 - config.warmup_steps, 1)
        progress = min(max((step - config.warmup_steps) / length, 0.0), 1.0)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        factor = config.final_factor + (1.0 - config.final_factor) * cosine
    else:
        factor = config.gamma**drops
    if step < config.warmup_steps:  # the warm-up multiplies the schedule's own factor
        risen = step / config.warmup_steps if config.warmup_kind == "linear" else 0.0
        factor *= config.warmup_factor + (1.0 - config.warmup_factor) * risen
    return factor


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set the rate of every parameter group to `factor` times its peak, in place."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale the gradients in place to a global L2 norm of at most `max_norm`; None only measures.

    Returns:
        The global norm before scaling: 0-dim float32 on the gradients' device, without waiting for
        it. Not finite if any gradient is not; 0 if there are no gradients.
    """
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm)
    return norm


def step_if_finite(optimizer: Optimizer, finite: Tensor) -> None:
    """Update the weights if `finite` is True; otherwise change neither weights nor state.

    The fused kernel reads the flag on the device, so the host does not wait for it.

    Args:
        optimizer: from `build_optimizer`.
        finite: 0-dim bool on the parameters' device.
    """
    # How torch.amp.GradScaler passes the flag to a fused kernel; there is no public argument.
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = torch.logical_not(finite).float()  # type: ignore[attr-defined]
    optimizer.step()


def optimizer_state(optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return the optimiser's state tensors by parameter name, for `load_optimizer_state`.

    Rates and weight decay are not included: a resumed run takes them from its config.
    """
    return {name: dict(optimizer.state[p]) for name, p in _named_parameters(optimizer)}


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Restore the state that `optimizer_state` returned, in each parameter's memory layout.

    Raises:
        UserError: the state is of another kind of optimiser, or of other parameters.
    """
    named = dict(_named_parameters(optimizer))
    for name in [*named, *state]:
        if name not in named or name not in state:
            where = "model" if name in named else "checkpoint"
            raise UserError(f"optimiser state: parameter {name} is trained in the {where} only")
    expected = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, AdamW) else set()
    if isinstance(optimizer, SGD) and optimizer.defaults["momentum"] > 0:
        expected = {"momentum_buffer"}
    for name, parameter in named.items():
        tensors = state[name]
        if tensors and set(tensors) != expected:
            got = ", ".join(tensors)
            raise UserError(
                f"optimiser state: expected tensors of {type(optimizer).__name__}, got {got}"
            )
        for key, value in tensors.items():
            # AdamW's step counter is a scalar; all other tensors have the parameter's shape
            shape = torch.Size() if key == "step" else parameter.shape
            if value.shape != shape:
                raise UserError(
                    f"optimiser state: {name}: expected shape {tuple(shape)}, "
                    f"got {tuple(value.shape)}"
                )
            like = parameter if value.ndim else torch.zeros((), device=parameter.device)
            # empty_like copies the memory layout, which the fused kernel relies on
            optimizer.state[parameter][key] = torch.empty_like(like).copy_(value)


def _named_parameters(optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [
        pair
        for group in optimizer.param_groups
        for pair in zip(group["param_names"], group["params"], strict=True)
    ]
