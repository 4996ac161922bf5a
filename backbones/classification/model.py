"""The classifier: backbone, average pool and fc in one ResNet, with the pixels' normalisation."""

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.norm import NormKind
from backbones.resnet import ResNet, Shortcut, build_resnet, cifar_resnet


class Classifier(nn.Module):
    """A ResNet with its `fc`, and the mean and deviation of the pixels that it was trained on."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, backbone: ResNet, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        """Take RGB means and deviations on the scale 0..255."""
        super().__init__()
        self.backbone = backbone
        # In the config, not in the weights: hence not persistent.
        mean, std = torch.tensor(pixel_mean), torch.tensor(pixel_std)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1), persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Map RGB pixels (B, 3, H, W), 0..255, to float32 of about zero mean and unit deviation."""
        return (pixels - self.pixel_mean) / self.pixel_std

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised pixels (B, 3, H, W) to logits (B, K)."""
        logits: Tensor = self.backbone(x)
        return logits

    def dense_logits(self, x: Tensor, *, window: int) -> Tensor:
        """Classify every window of a larger picture, and return the mean logits (B, K).

        The average pool slides over the last map with the size that it has on a `window` x
        `window` picture, and fc is applied at each place (section 3.4: fully convolutional).

        Args:
            x: normalised pixels (B, 3, H, W), sides of at least `window`.
            window: side of the training crop, in pixels.
        """
        features = list(self.backbone.features(x).values())[-1]
        cells = -(-window // list(self.backbone.feature_specs.values())[-1].stride)
        pooled = F.avg_pool2d(features, cells, stride=1)
        logits: Tensor = self.backbone.fc(pooled.mean((2, 3)))  # fc and the mean are both linear
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

    shortcut: None takes the architecture's own: B for ImageNet, A for CIFAR.
    """
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
