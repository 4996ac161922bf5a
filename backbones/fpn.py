"""Feature pyramid (Lin et al., 2017): the backbone's maps brought to one width, coarse to fine.

B images; c2..c5 backbone features, p2..p6 pyramid levels, each half the size of the one before.
"""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.features import FeatureSpec
from backbones.norm import make_norm


class FPN(nn.Module):
    """Lateral 1x1 convolutions (`inner`), a top-down sum, and a 3x3 convolution a level (`layer`).

    specs: the features that go in, finest first. channels: of every level. norm: after each
    convolution, which then has no bias.
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
        self.feature_specs = {
            f"p{level}": FeatureSpec(channels, stride)
            for level, stride in enumerate([*strides, 2 * strides[-1]], start=2)
        }

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map c2..c5, each (B, its channels, H, W), to p2..p6, each (B, channels, H, W).

        p2..p5 have the sides of c2..c5; p6 is every second cell of p5.
        """
        laterals = [
            inner(feature) for inner, feature in zip(self.inner, features.values(), strict=True)
        ]
        merged = laterals[-1:]
        for lateral in laterals[-2::-1]:
            coarser = F.interpolate(merged[-1], size=lateral.shape[-2:], mode="nearest")
            merged.append(lateral + coarser)
        levels = [layer(m) for layer, m in zip(self.layer, reversed(merged), strict=True)]
        levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return dict(zip(self.feature_specs, levels, strict=True))
