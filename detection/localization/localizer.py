"""Per-class region proposal network: the first stage of localization (He et al. 2015, appendix C).

B images of one shape, T requested classes per image, K classes, A anchors per cell, N = H*W*A
anchors. Boxes are in network-input pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.pixel_normalization import PixelNormalizedNetwork
from backbones.resnet import ResNet
from detection.models.anchors import AnchorGenerator


@dataclass(frozen=True)
class LocalizerOutput:
    """The outputs of the localizer for the requested classes of one batch.

    logits: (B, N, T) float32, whether an anchor contains an object of the class. deltas:
    (B, N, T, 4) float32 (dx, dy, dw, dh) relative to the anchors. anchors: (N, 4) xyxy, the same
    for every image.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor


class LocalizerHead(nn.Module):
    """A 3x3 convolution, then two sibling 1x1 convolutions: K logits and K boxes per anchor.

    Only the outputs of the requested classes are computed: the outputs of all 1,000 ImageNet
    classes would cost more than the residual network. For this, the 1x1 convolutions are stored as
    linear layers. Their output channels are ordered by class, then anchor, then coordinate. With
    K = 1 this is the class-agnostic head of Faster R-CNN.
    """

    def __init__(self, in_channels: int, *, num_classes: int, num_anchors: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.objectness = nn.Linear(in_channels, num_classes * num_anchors)
        self.deltas = nn.Linear(in_channels, num_classes * num_anchors * 4)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the requested classes.

        Args:
            features: (B, C, H, W).
            classes: (B, T) int64 in 0..K-1.

        Returns:
            logits (B, N, T) and deltas (B, N, T, 4) in the order of the anchors: row, column,
            anchor of the cell. float32 even under autocast, because box arithmetic needs it.
        """
        hidden = F.relu(self.conv(features)).flatten(2)  # (B, C, H*W)
        logits = self._outputs(self.objectness, hidden, classes)  # (B, H*W, T, A)
        deltas = self._outputs(self.deltas, hidden, classes).unflatten(3, (-1, 4))
        # move T behind A, then merge H*W and A into N
        return logits.transpose(2, 3).flatten(1, 2), deltas.transpose(2, 3).flatten(1, 2)

    def _outputs(self, layer: nn.Linear, hidden: Tensor, classes: Tensor) -> Tensor:
        """Apply the rows of `layer` that belong to `classes`: (B, H*W, T, outputs), float32."""
        weight = layer.weight.unflatten(0, (self.num_classes, -1))[classes]  # (B, T, outputs, C)
        bias = layer.bias.unflatten(0, (self.num_classes, -1))[classes]
        outputs: Tensor = torch.einsum("bcp,btoc->bpto", hidden, weight).float() + bias[:, None]
        return outputs


class Localizer(PixelNormalizedNetwork):
    """A residual network with a `LocalizerHead` on one of its feature maps.

    Args:
        backbone: the classification network, without `fc`. Stages after `level` are not used.
        level: the feature map that the head reads, c2 to c5.
        anchor_generator: anchors on that map.
        head: matches the map's channels and the number of anchors per cell.
        pixel_mean: RGB, on the scale 0..255.
        pixel_std: RGB, on the scale 0..255.
    """

    def __init__(
        self,
        backbone: ResNet,
        *,
        level: str,
        anchor_generator: AnchorGenerator,
        head: LocalizerHead,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.backbone = backbone
        self.level = level
        self.anchor_generator = anchor_generator
        self.head = head
        self._last_stage = int(level[1:])
        # Unused stages stay in the network, so that it loads and saves all weights of a classifier.
        for number in range(self._last_stage + 1, 6):
            getattr(backbone, f"layer{number - 1}").requires_grad_(False)

    def forward(self, pixels: Tensor, classes: Tensor) -> LocalizerOutput:
        """Predict boxes of the requested classes.

        Args:
            pixels: (B, 3, H, W) RGB on the scale 0..255, no padding.
            classes: (B, T) int64 in 0..K-1; without effect if the head is class-agnostic.
        """
        return self.predict_normalized(self.normalize(pixels), classes)

    def predict_normalized(self, pixels: Tensor, classes: Tensor) -> LocalizerOutput:
        """Do what `forward` does, for normalised pixels."""
        features = self.backbone.features(pixels, upto=self._last_stage)[self.level]
        if self.head.num_classes == 1:  # class-agnostic: the only class is 0
            classes = torch.zeros_like(classes)
        logits, deltas = self.head(features, classes)
        shape = (features.shape[2], features.shape[3])
        return LocalizerOutput(logits, deltas, self.anchor_generator([shape]))
