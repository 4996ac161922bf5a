"""Scaling of gradients: an identity whose gradient is multiplied by a factor."""

from typing import Any

import torch
from torch import Tensor


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x` (any shape) itself; in the backward pass its gradient is `factor` times as large.

    A factor of 1 changes nothing.
    """
    if factor == 1:
        return x
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * context.factor, None
