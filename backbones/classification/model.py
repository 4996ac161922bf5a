"""Image classifier: a backbone with its final `fc` layer, and pixel normalisation."""

import re
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from backbones.blocks import Shortcut
from backbones.features import Backbone
from backbones.norm import NormKind
from backbones.pixel_normalization import PixelNormalizedNetwork
from backbones.resnet import build_resnet, cifar_resnet
from backbones.vgg import VGG16


class Classifier(PixelNormalizedNetwork):
    """A backbone with its `fc`, and the pixel mean and std that it was trained with."""

    def __init__(
        self, backbone: Backbone, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
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
        convolutional form). Not for VGG-16, whose fc6 is not a pooling.

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
    width_multiplier: float = 1.0,
) -> Backbone:
    """Build resnet18 ... resnet152, plain18, plain34, vgg16, cifar_resnet20 ..., cifar_plain20 ...

    shortcut: None means the architecture's default: B for ImageNet, A for CIFAR. width_multiplier:
    see `scaled_channels`. VGG-16 has neither norms nor shortcuts.
    """
    if kind == "vgg16":
        return VGG16(num_classes, width_multiplier=width_multiplier)
    common: dict[str, Any] = {
        "num_classes": num_classes,
        "norm": norm,
        "norm_eps": norm_eps,
        "width_multiplier": width_multiplier,
    }
    # the config has checked the name
    if cifar := re.fullmatch(r"cifar_(resnet|plain)(\d+)", kind):
        shortcut = "none" if cifar[1] == "plain" else shortcut or "A"
        return cifar_resnet(int(cifar[2]), shortcut=shortcut, **common)
    return build_resnet(kind, stride_in_1x1=stride_in_1x1, shortcut=shortcut or "B", **common)
