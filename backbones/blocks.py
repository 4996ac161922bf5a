"""Residual blocks and their shortcuts (He et al. 2015, sections 3.2, 3.3, 4.2).

B images, H x W cells, C channels.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.norm import conv_norm, conv_norm_of_pooled, conv_norm_relu

Shortcut = Literal["A", "B", "C", "none"]
Norm = Callable[[int], nn.Module]
Pool = Callable[[Tensor, int], Tensor]
"""See `conv_norm_of_pooled`."""


class PaddedIdentity(nn.Module):
    """Shortcut of option A: every `stride`-th cell, padded with zero channels; no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        extra = out_channels - in_channels
        # F.pad counts from the last dimension: width, height, then channels before and after
        self.padding = (0, 0, 0, 0, extra // 2, extra - extra // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def make_shortcut(
    option: Shortcut, in_channels: int, out_channels: int, *, stride: int, norm: Norm
) -> nn.Module | None:
    """Build the shortcut of a block; None: the identity, or with option "none" no shortcut."""
    # A and B use the identity if the shape stays the same; C always projects.
    grows = stride != 1 or in_channels != out_channels
    if option == "none" or not (grows or option == "C"):
        return None
    if option == "A":
        return PaddedIdentity(in_channels, out_channels, stride)
    projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(projection, norm(out_channels))


def project(x: Tensor, shortcut: nn.Module | None) -> Tensor:
    """Return the output of a shortcut built by `make_shortcut`."""
    if isinstance(shortcut, nn.Sequential):
        conv, norm = shortcut  # not called as a Sequential, so that a fixed norm can be folded
        assert isinstance(conv, nn.Conv2d)
        return conv_norm(x, conv, norm)
    return x if shortcut is None else shortcut(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (the paper's figure 5, left)."""

    expansion: ClassVar[int] = 1

    def __init__(
        self, in_channels: int, width: int, *, stride: int, shortcut: Shortcut, norm: Norm
    ) -> None:
        super().__init__()
        self.residual = shortcut != "none"
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = make_shortcut(shortcut, in_channels, width, stride=stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, width, ceil(H / stride), ceil(W / stride))."""
        y = conv_norm_relu(x, self.conv1, self.bn1)
        around = project(x, self.downsample) if self.residual else None
        return conv_norm_relu(y, self.conv2, self.bn2, add=around)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut (the paper's figure 5, right)."""

    expansion: ClassVar[int] = 4
    # The stride is on the 3x3 in torchvision ("v1.5"), on the first 1x1 in the paper and the MSRA
    # weights.
    stride_in_1x1: ClassVar[bool] = False

    def __init__(
        self, in_channels: int, width: int, *, stride: int, shortcut: Shortcut, norm: Norm
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        stride1, stride2 = (stride, 1) if self.stride_in_1x1 else (1, stride)
        self.residual = shortcut != "none"
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride2, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = make_shortcut(
            shortcut, in_channels, out_channels, stride=stride, norm=norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, 4 width, ceil(H / stride), ceil(W / stride))."""
        y = conv_norm_relu(x, self.conv1, self.bn1)
        return self._finish(y, project(x, self.downsample))

    def forward_pooled(self, x: Tensor, pool: Pool) -> Tensor:
        """Return forward(pool(x, 1)); see `conv_norm_of_pooled`."""
        # Both convolutions that read the block's input are 1x1: conv1 and the projection.
        y = conv_norm_of_pooled(x, self.conv1, self.bn1, pool=pool)
        if isinstance(self.downsample, nn.Sequential):
            conv, norm = self.downsample
            assert isinstance(conv, nn.Conv2d)
            around = conv_norm_of_pooled(x, conv, norm, pool=pool)
        else:
            around = project(pool(x, 1), self.downsample)
        return self._finish(F.relu(y, inplace=True), around)

    def _finish(self, y: Tensor, around: Tensor) -> Tensor:
        """Return the block's output from that of the first convolution and that of the shortcut."""
        y = conv_norm_relu(y, self.conv2, self.bn2)
        return conv_norm_relu(y, self.conv3, self.bn3, add=around if self.residual else None)


class PaperBottleneck(Bottleneck):
    """Bottleneck with the stride on its first 1x1 convolution, as in the 2015 paper."""

    stride_in_1x1 = True
