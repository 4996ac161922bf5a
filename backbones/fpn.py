"""Feature pyramid network (FPN; Lin et al., 2017).

B images; c2..c5 backbone features, p2..p6 pyramid levels, each half the size of the one before.
"""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.features import FeatureSpec
from backbones.norm import make_norm


class FPN(nn.Module):
    """Feature pyramid: 1x1 lateral convolutions, top-down sums, and a 3x3 convolution per level.

    The modules `inner` (lateral) and `layer` (output) are torchvision's `inner_blocks` and
    `layer_blocks`. specs: input features, finest first. channels: output channels of every level.
    norm: norm layer after each convolution; the convolutions then have no bias.
    """

    def __init__(
        self,
        specs: Mapping[str, FeatureSpec],
        *,
        channels: int = 256,
        norm: Literal["none", "batch", "group"] = "none",
    ) -> None:
        super().__init__()

        def convolution(in_channels: int, kernel: int) -> nn.Module:
            conv = nn.Conv2d(
                in_channels, channels, kernel, padding=kernel // 2, bias=norm == "none"
            )
            nn.init.kaiming_uniform_(conv.weight, a=1)  # a=1: no nonlinearity follows
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            return conv if norm == "none" else nn.Sequential(conv, make_norm(norm, channels))

        self.inner = nn.ModuleList(convolution(spec.channels, 1) for spec in specs.values())
        self.layer = nn.ModuleList(convolution(channels, 3) for _ in specs)
        strides = [spec.stride for spec in specs.values()]
        # one level per input feature, and an extra coarsest one with twice the last stride (p6)
        self.feature_specs = {
            f"p{level}": FeatureSpec(channels, stride)
            for level, stride in enumerate([*strides, 2 * strides[-1]], start=2)
        }

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map c2..c5, each (B, C, H, W) with its own C, to p2..p6, each (B, channels, H, W).

        p2..p5 have the height and width of c2..c5. p6 is p5 subsampled by 2.
        """
        laterals = [
            inner(feature) for inner, feature in zip(self.inner, features.values(), strict=True)
        ]
        merged = laterals[-1:]  # top-down, so from coarse to fine
        for lateral in laterals[-2::-1]:
            coarser = F.interpolate(merged[-1], size=lateral.shape[-2:], mode="nearest")
            merged.append(lateral + coarser)
        levels = [layer(m) for layer, m in zip(self.layer, reversed(merged), strict=True)]
        levels.append(F.max_pool2d(levels[-1], 1, stride=2))  # a 1x1 window: plain subsampling
        return dict(zip(self.feature_specs, levels, strict=True))
