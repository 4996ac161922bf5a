"""Group norm (Wu and He 2018) with a fast backward pass on CPUs.

B images, C channels, H x W cells, G groups of C / G channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.kernels import kernels_kind


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, *, eps: float = 1e-5
) -> Tensor:
    """Return group norm of x, (B, C, H, W).

    The fast implementation is for CPUs: torch's own backward pass takes 5 times as long for a
    channels-last bfloat16 map (docs/LOG.md, torch 2.15).

    Args:
        x: (B, C, H, W).
        num_groups: G, a divisor of C.
        weight: (C,).
        bias: (C,).
        eps: added to the variance.
    """
    if x.device.type == "cuda":
        # Under autocast the device would return float32, whatever the dtype of x. The statistics
        # are computed in float32 here too; like the weights of convolutions, weight and bias are
        # rounded to the dtype of x, and so are their gradients.
        with torch.autocast("cuda", enabled=False):
            return F.group_norm(x, num_groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    if kernels_kind() == "reference" or torch.compiler.is_compiling():
        return F.group_norm(x, num_groups, weight, bias, eps)
    normed: Tensor = _GroupNorm.apply(x, weight, bias, num_groups, eps)
    return normed


class _GroupNorm(torch.autograd.Function):
    """torch's forward pass, and a backward pass that reads the map three times."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        """Return group norm of x (B, C, H, W); weight and bias are (C,)."""
        sizes = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3], groups)
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous()  # torch 2.11 rejects other layouts, such as strided slices
        out: Tensor
        out, mean, rstd = torch.native_group_norm(
            x, weight.to(x.dtype), bias.to(x.dtype), *sizes, eps
        )
        ctx.save_for_backward(x, weight, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of x, weight and bias."""
        x, weight, mean, rstd = ctx.saved_tensors  # mean and rstd: (B, G)
        groups = mean.shape[1]
        per_group = x.shape[1] // groups
        group_size = per_group * x.shape[2] * x.shape[3]
        wide = torch.promote_types(x.dtype, torch.float32)
        # From here statistics and sums are (B, C): one value for each image and channel.
        mean = mean.to(wide).repeat_interleave(per_group, 1)
        rstd = rstd.to(wide).repeat_interleave(per_group, 1)
        grad_bias = grad.sum((2, 3), dtype=wide)
        # sum of grad * normed, with normed = (x - mean) * rstd, without making the map `normed`
        grad_weight = ((grad * x).sum((2, 3), dtype=wide) - mean * grad_bias) * rstd

        def group_mean(values: Tensor) -> Tensor:
            # mean over a group's channels and cells, from sums over cells; (B, C) to (B, C)
            sums: Tensor = values.unflatten(1, (groups, per_group)).sum(2)
            means: Tensor = sums.repeat_interleave(per_group, 1) / group_size
            return means

        # With normed = (x - mean) * rstd:
        # grad_x = rstd * (weight * grad - group_mean(weight * grad)
        #                  - normed * group_mean(weight * grad * normed))
        # This is linear in grad and x: grad_x = of_grad * grad + of_x * x + constant, with one
        # factor per image and channel. The sums over cells of grad and of grad * normed are
        # grad_bias and grad_weight.
        of_grad = rstd * weight
        of_x = -rstd * rstd * group_mean(weight * grad_weight)
        constant = -rstd * group_mean(weight * grad_bias) - of_x * mean
        of_grad, of_x, constant = (
            v.to(x.dtype)[..., None, None] for v in (of_grad, of_x, constant)
        )
        grad_x = torch.addcmul(torch.addcmul(constant, x, of_x), grad, of_grad)
        return grad_x, grad_weight.sum(0), grad_bias.sum(0), None, None  # summed over images
