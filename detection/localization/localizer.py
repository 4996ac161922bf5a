"""A region proposal network with outputs for each class (He et al. 2015, appendix C).

B images of one shape, T classes asked for of each, K classes, A anchors a cell, N = H*W*A. Frame:
network-input pixels.
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
    """What the localizer says of one batch and the classes that it was asked for.

    logits: (B, N, T) float32, that an anchor holds an object of the class. deltas: (B, N, T, 4)
    float32 (dx, dy, dw, dh) from `anchors` (N, 4) xyxy, the same for every image.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor


class LocalizerHead(nn.Module):
    """A 3x3 convolution, then two sibling 1x1 convolutions: K logits and K boxes an anchor.

    Only the outputs that are asked for are computed: those of all thousand classes of ImageNet
    would cost more than the residual network. The 1x1 convolutions are kept as linear layers, class
    by class, within a class anchor by anchor. K of 1 is the class-agnostic head of Faster R-CNN.
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
        """Return logits (B, N, T) and deltas (B, N, T, 4), in the order of the anchors.

        Args:
            features: (B, C, H, W).
            classes: (B, T) int64 in 0..K-1.

        Returns:
            float32 even under autocast: box arithmetic needs it.
        """
        hidden = F.relu(self.conv(features)).flatten(2)  # (B, C, H*W)
        logits = self._outputs(self.objectness, hidden, classes)  # (B, H*W, T, A)
        deltas = self._outputs(self.deltas, hidden, classes).unflatten(3, (-1, 4))
        return logits.transpose(2, 3).flatten(1, 2), deltas.transpose(2, 3).flatten(1, 2)

    def _outputs(self, layer: nn.Linear, hidden: Tensor, classes: Tensor) -> Tensor:
        """Return (B, H*W, T, outputs of a class), float32."""
        weight = layer.weight.unflatten(0, (self.num_classes, -1))[classes]  # (B, T, outputs, C)
        bias = layer.bias.unflatten(0, (self.num_classes, -1))[classes]
        outputs: Tensor = torch.einsum("bcp,btoc->bpto", hidden, weight).float() + bias[:, None]
        return outputs


class Localizer(PixelNormalizedNetwork):
    """The head on one feature map of a residual network; stages behind that map take no part.

    Args:
        backbone: the classification network, without `fc`.
        level: the map that the head sees, c2 to c5.
        anchor_generator: anchors on that map.
        head: for its channels and anchors.
        pixel_mean: RGB, on the scale 0..255.
        pixel_std: the same.
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
        # They stay in the network, so that it takes and leaves the weights of a whole classifier.
        for number in range(self._last_stage + 1, 6):
            getattr(backbone, f"layer{number - 1}").requires_grad_(False)

    def forward(self, pixels: Tensor, classes: Tensor) -> LocalizerOutput:
        """Look for objects of the given classes.

        Args:
            pixels: (B, 3, H, W) RGB on the scale 0..255, no padding.
            classes: (B, T) int64 in 0..K-1; of no effect on a class-agnostic head.
        """
        features = self.backbone.features(self.normalize(pixels), upto=self._last_stage)[self.level]
        if self.head.num_classes == 1:
            classes = torch.zeros_like(classes)
        logits, deltas = self.head(features, classes)
        shape = (features.shape[2], features.shape[3])
        return LocalizerOutput(logits, deltas, self.anchor_generator([shape]))
