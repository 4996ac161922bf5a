"""Training written out: clip, SGD with momentum, moving average; one update after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Rules:
    """What an update does: the rate of each step, and the rest the same for all.

    clip: largest norm of the gradient. decay: of the moving average.
    """

    rates: Sequence[float]
    momentum: float
    weight_decay: float
    clip: float | None = None
    decay: float | None = None


def train(
    model: nn.Module,
    stage_config: Callable[[Any], Tensor],
    steps: Sequence[Sequence[Any]],
    rules: Rules,
) -> dict[str, Tensor]:
    """Train `model` on the parts of each step; return its last weights, averaged where asked."""
    parameters = dict(model.named_parameters())
    speed = {name: torch.zeros_like(value) for name, value in parameters.items()}
    average = {name: value.detach().clone() for name, value in parameters.items()}
    for number, (parts, rate) in enumerate(zip(steps, rules.rates, strict=True)):
        loss = sum((stage_config(part) for part in parts), torch.zeros(())) / len(parts)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        norm = sum(float((gradient**2).sum()) for gradient in gradients) ** 0.5
        scale = 1.0 if rules.clip is None else min(1.0, rules.clip / (norm + 1e-6))
        with torch.no_grad():
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                change = gradient * scale + rules.weight_decay * value
                speed[name] = rules.momentum * speed[name] + change
                value.sub_(rate * speed[name])
        if rules.decay is not None:
            kept = min(rules.decay, (1 + number) / (10 + number))
            for name, value in parameters.items():
                average[name] = kept * average[name] + (1 - kept) * value.detach()
    if rules.decay is not None:
        return average
    return {name: value.detach() for name, value in parameters.items()}
