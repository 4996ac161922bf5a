"""Optimiser, learning rate over steps, clipping, and an update that a bad gradient cannot spoil.

The fused kernels run on the CPU and on GPUs. They read a tensor of state by its raw memory, so each
must lie in memory as its parameter does: build the optimiser after the module has its device and
memory format, and restore it by `load_optimizer_state`.
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
    """Make the optimiser of the parameters that require a gradient.

    Groups differ in weight decay and in rate; each keeps its peak rate as `base_lr`.

    Args:
        module: float32 parameters; those with `backbone` in their dotted name have its rate.
        config: kind, rates and decay.
        batch_size: images in one update over all processes, for `reference_batch_size`.

    Raises:
        UserError: nothing trains, or a backbone factor without a backbone that trains.
    """
    groups: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # Vectors are biases and norms' scales and shifts; every weight has two axes or more.
            decays = config.decay_norm_and_bias or parameter.ndim > 1
            in_backbone = "backbone" in name.split(".")
            groups.setdefault((decays, in_backbone), []).append((name, parameter))
    if not groups:
        raise UserError("model: expected parameters that train, got none (all stages are frozen)")
    if config.backbone_lr_factor != 1.0 and not any(in_backbone for _, in_backbone in groups):
        factor = config.backbone_lr_factor
        raise UserError(
            f"optim.backbone_lr_factor: expected 1 (no backbone trains), got {factor:g}"
        )

    lr = effective_lr(config, batch_size)
    param_groups: list[dict[str, Any]] = []
    for (decays, in_backbone), named in groups.items():
        group_lr = lr * (config.backbone_lr_factor if in_backbone else 1.0)
        decay = config.weight_decay if decays else 0.0
        group = {"params": named, "lr": group_lr, "base_lr": group_lr, "weight_decay": decay}
        param_groups.append(group)
    if config.kind == "adamw":
        return AdamW(param_groups, lr=lr, betas=config.betas, fused=True)
    optimizer = SGD(param_groups, lr=lr, momentum=config.momentum, fused=True)
    if config.momentum > 0:
        # The kernel leaves the momentum uninitialised when the very first update is skipped.
        for _, parameter in _named_parameters(optimizer):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def effective_lr(config: OptimConfig, batch_size: int) -> float:
    """Return the peak rate for `batch_size` images an update."""
    if config.reference_batch_size is None:
        return config.lr
    return config.lr * batch_size / config.reference_batch_size


def lr_note(config: OptimConfig, batch_size: int) -> str | None:
    """Return a line for the console when the rate follows the batch size, else None."""
    if config.reference_batch_size in (None, batch_size):
        return None
    return (
        f"learning rate {effective_lr(config, batch_size):g} = optim.lr {config.lr:g} "
        f"x loop.batch_size {batch_size} / optim.reference_batch_size {config.reference_batch_size}"
    )


def lr_factor(step: int, config: ScheduleConfig, *, max_steps: int, drops: int = 0) -> float:
    """Return the rate, relative to the peak, of update `step` in 0..max_steps-1.

    drops: of `plateau`, how often the rate has dropped so far.
    """
    if config.kind == "steps":
        share = all(milestone < 1 for milestone in config.milestones)
        scale = max_steps if share else 1
        factor = config.gamma ** sum(step >= milestone * scale for milestone in config.milestones)
    elif config.kind == "cosine":
        length = max(max_steps - 1 - config.warmup_steps, 1)
        progress = min(max((step - config.warmup_steps) / length, 0.0), 1.0)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        factor = config.final_factor + (1.0 - config.final_factor) * cosine
    else:
        factor = config.gamma**drops
    if step < config.warmup_steps:
        risen = step / config.warmup_steps if config.warmup_kind == "linear" else 0.0
        factor *= config.warmup_factor + (1.0 - config.warmup_factor) * risen
    return factor


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale the gradients in place to an L2 norm of at most `max_norm`; None leaves them alone.

    Returns:
        The norm of all gradients together before that, 0-dim float32 on their device, without
        waiting for it; not finite when one of them is not, 0 when there is no gradient.
    """
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm)
    return norm


def step_if_finite(optimizer: Optimizer, finite: Tensor) -> None:
    """Update the weights where `finite` holds, else change neither weights nor optimiser state.

    The kernel itself reads the flag, so the host does not wait for the device.

    Args:
        optimizer: from `build_optimizer`.
        finite: 0-dim bool on the parameters' device.
    """
    # What torch.amp.GradScaler tells a fused kernel; no public argument exists.
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = torch.logical_not(finite).float()  # type: ignore[attr-defined]
    optimizer.step()


def optimizer_state(optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return the optimiser's tensors by parameter name, for `load_optimizer_state`.

    Rates and decay are not in it: after a resume they are the config's.
    """
    return {name: dict(optimizer.state[p]) for name, p in _named_parameters(optimizer)}


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put back what `optimizer_state` returned.

    Raises:
        UserError: the state is of another kind of optimiser, or of other parameters.
    """
    named = dict(_named_parameters(optimizer))
    for name in [*named, *state]:
        if name not in named or name not in state:
            where = "model" if name in named else "checkpoint"
            raise UserError(f"optimiser state: parameter {name} trains in the {where} alone")
    expected = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, AdamW) else set()
    if isinstance(optimizer, SGD) and optimizer.defaults["momentum"] > 0:
        expected = {"momentum_buffer"}
    for name, parameter in named.items():
        tensors = state[name]
        if tensors and set(tensors) != expected:
            got = ", ".join(tensors)
            raise UserError(
                f"optimiser state: expected that of {type(optimizer).__name__}, got {got}"
            )
        for key, value in tensors.items():
            shape = torch.Size() if key == "step" else parameter.shape
            if value.shape != shape:
                raise UserError(
                    f"optimiser state: {name}: expected shape {tuple(shape)}, "
                    f"got {tuple(value.shape)}"
                )
            like = parameter if value.ndim else torch.zeros((), device=parameter.device)
            optimizer.state[parameter][key] = torch.empty_like(like).copy_(value)


def _named_parameters(optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [
        pair
        for group in optimizer.param_groups
        for pair in zip(group["param_names"], group["params"], strict=True)
    ]
