"""Image classifier: a ResNet with its final `fc` layer, and pixel normalisation."""

import re
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from backbones.blocks import Shortcut
from backbones.norm import NormKind
from backbones.pixel_normalization import PixelNormalizedNetwork
from backbones.resnet import ResNet, build_resnet, cifar_resnet


class Classifier(PixelNormalizedNetwork):
    """A ResNet with its `fc`, and the pixel mean and std that it was trained with."""

    def __init__(
        self, backbone: ResNet, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        """Store the network, and the RGB mean and std on the scale 0..255."""
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised pixels (B, 3, H, W) to logits (B, K)."""
        logits: Tensor = self.backbone(x)
        return logits

    def dense_logits(self, x: Tensor, *, window: int) -> Tensor:
        """Classify every window of a larger image, and return the mean logits (B, K).

        The average pool becomes a sliding window over the last feature map, as large as that map
        is for a `window` x `window` image. fc is applied at each position (section 3.4: fully
        convolutional form).

        Args:
            x: normalised pixels (B, 3, H, W); H and W are at least `window`.
            window: side of the training crop, in pixels.
        """
        features = list(self.backbone.features(x).values())[-1]
        # side of the last map for a window, rounded up
        cells = -(-window // list(self.backbone.feature_specs.values())[-1].stride)
        pooled = F.avg_pool2d(features, cells, stride=1)
        # fc is linear, so the mean over positions may come before it: one product, not many
        logits: Tensor = self.backbone.fc(pooled.mean((2, 3)))
        return logits


def build_network(
    kind: str,
    *,
    num_classes: int,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut | None = None,
) -> ResNet:
    """Build resnet18 ... resnet152, plain18, plain34, cifar_resnet20 ... or cifar_plain20 ...

    shortcut: None means the architecture's default: B for ImageNet, A for CIFAR.
    """
    # "cifar_resnet20" -> ("cifar_resnet", "20"); the config has checked the name
    family, depth = re.fullmatch(r"(\D+?)(\d+)", kind).groups()  # type: ignore[union-attr]
    plain = family.endswith("plain")
    common: dict[str, Any] = {"num_classes": num_classes, "norm": norm, "norm_eps": norm_eps}
    if family.startswith("cifar_"):
        return cifar_resnet(int(depth), shortcut="none" if plain else shortcut or "A", **common)
    return build_resnet(
        f"resnet{depth}",
        stride_in_1x1=stride_in_1x1,
        shortcut="none" if plain else shortcut or "B",
        **common,
    )
