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


def build_optimizer(module: nn.Module, config: OptimConfig, *, batch_size: int) -> Optimizer:
    """Build the optimiser for the parameters that require a gradient.

    Parameter groups differ in weight decay and learning rate; each stores its peak rate as
    `base_lr`.

    Args:
        module: float32 parameters; those with `backbone` as a part of their dotted name use
            `backbone_lr_factor`.
        config: kind, rates and decay.
        batch_size: images per update over all processes, for `reference_batch_size`.

    Raises:
        UserError: no parameter is trained, or `backbone_lr_factor` is set without a trained
            backbone.
    """
    groups: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # 1-D parameters are biases and scales and shifts of norms; weights have 2 or more axes.
            decays = config.decay_norm_and_bias or parameter.ndim > 1
            in_backbone = "backbone" in name.split(".")
            groups.setdefault((decays, in_backbone), []).append((name, parameter))
    if not groups:
        raise UserError("model: expected trainable parameters, got none (all stages are frozen)")
    if config.backbone_lr_factor != 1.0 and not any(in_backbone for _, in_backbone in groups):
        factor = config.backbone_lr_factor
        raise UserError(
            f"optim.backbone_lr_factor: expected 1 (no backbone is trained), got {factor:g}"
        )

    lr = effective_lr(config, batch_size)
    param_groups: list[dict[str, Any]] = []
    for (decays, in_backbone), named in groups.items():
        group_lr = lr * (config.backbone_lr_factor if in_backbone else 1.0)
        decay = config.weight_decay if decays else 0.0
        group = {"params": named, "lr": group_lr, "base_lr": group_lr, "weight_decay": decay}
        param_groups.append(group)
    # fused kernels are fast and can skip an update on the device (see step_if_finite)
    if config.kind == "adamw":
        return AdamW(param_groups, lr=lr, betas=config.betas, fused=True)
    optimizer = SGD(param_groups, lr=lr, momentum=config.momentum, fused=True)
    if config.momentum > 0:
        # Without this, skipping the very first update would leave the momentum uninitialised.
        for _, parameter in _named_parameters(optimizer):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


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
