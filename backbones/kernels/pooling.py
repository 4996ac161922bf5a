"""Global average pooling.

B images, C channels, H x W cells.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def mean_over_cells(x: Tensor) -> Tensor:
    """Return x.mean((2, 3)), (B, C) from (B, C, H, W) of at least one cell.

    On a CPU torch's own makes a float32 copy of a bfloat16 map, and a contiguous gradient of a
    channels-last one, which the next pass reads out of order: for 512 regions of conv5, (2048, 7,
    7) in bfloat16, both take 162 ms where they take 10 with this (docs/LOG.md).
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return x.mean((2, 3))
    means: Tensor = _MeanOverCells.apply(x)
    return means


class _MeanOverCells(torch.autograd.Function):
    """The sum is in float32 at least; the gradient is one number a channel, seen in every cell."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return (B, C)."""
        ctx.shape = x.shape
        return F.avg_pool2d(x, x.shape[2:]).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        of_cell: Tensor = grad / ctx.shape[2:].numel()
        return of_cell[:, :, None, None].expand(ctx.shape)
