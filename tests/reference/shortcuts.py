"""Reference residual blocks and their shortcuts (sections 3.2 and 3.3), cell by cell.

B images, C channels, H x W cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def padded_identity(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """Return option A: every `stride`-th cell, with half of the zero channels on either side."""
    batch, channels, height, width = x.shape
    before = (out_channels - channels) // 2
    rows, columns = range(0, height, stride), range(0, width, stride)
    y = torch.zeros(batch, out_channels, len(rows), len(columns))
    for b in range(batch):
        for c in range(channels):
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    y[b, before + c, i, j] = x[b, c, row, column]
    return y


def projection(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return options B and C: a matrix (out, in) applied to every `stride`-th cell."""
    batch, _, height, width = x.shape
    rows, columns = range(0, height, stride), range(0, width, stride)
    y = torch.zeros(batch, weight.shape[0], len(rows), len(columns))
    for b in range(batch):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                y[b, :, i, j] = weight @ x[b, :, row, column]
    return y


def shortcut(option: str, x: Tensor, out_channels: int, stride: int, *, block: nn.Module) -> Tensor:
    """Return the shortcut's output; `block` holds the weights of a projection."""
    grows = stride != 1 or x.shape[1] != out_channels
    if option == "none":
        return torch.zeros(())
    if option in ("A", "B") and not grows:
        return x
    if option == "A":
        return padded_identity(x, out_channels, stride)
    weight, norm = block.get_parameter("downsample.0.weight"), block.get_submodule("downsample.1")
    projected: Tensor = norm(projection(x, weight[:, :, 0, 0], stride))
    return projected


def run_block(block: nn.Module, x: Tensor, *, option: str, stride: int, strided: str) -> Tensor:
    """Run a block of two or three convolutions; `strided` is the name of the one with stride.

    Each convolution is followed by its norm. ReLU follows all norms but the last, and the sum.
    """
    y = x
    count = sum(name.startswith("conv") for name, _ in block.named_children())
    for number in range(1, count + 1):
        weight = block.get_parameter(f"conv{number}.weight")
        step = stride if strided == f"conv{number}" else 1
        y = F.conv2d(y, weight, stride=step, padding=weight.shape[-1] // 2)
        y = block.get_submodule(f"bn{number}")(y)
        if number < count:
            y = F.relu(y)
    return F.relu(y + shortcut(option, x, y.shape[1], stride, block=block))
