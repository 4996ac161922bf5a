"""Linear layer, by oneDNN on a CPU in float32.

N rows, C columns in, D out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backbones.kernels.conv_relu import onednn_may_take
from engine.kernels import kernels_kind


class Linear(nn.Linear):
    """`nn.Linear` that calls `linear`; same state dict."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., D)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias, (..., D).

    The fast body runs on a CPU in float32. torch itself calls MKL there, which on an AMD processor
    reaches less than half of oneDNN's speed: a twentieth of a training step of R50-FPN
    (docs/LOG.md; measured on an AMD processor only). In bfloat16 torch itself calls oneDNN.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).
    """
    if kernels_kind() == "reference":
        return F.linear(x, weight, bias)
    float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (float32 and onednn_may_take(x)):
        return F.linear(x, weight, bias)
    rows: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias)
    return rows.view(*x.shape[:-1], len(weight))


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a @ b.T + bias."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    """x @ weight.T + bias of x (N, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (N, D)."""
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias."""
        # y = x @ weight.T, so grad_x = grad @ weight and grad_weight = grad.T @ x
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.T) if of_x else None,
            _product(grad.T, x.T) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
