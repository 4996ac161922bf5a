"""Image classifier: a backbone with its final `fc` layer, and pixel normalisation."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from backbones.features import Backbone
from backbones.pixel_normalization import PixelNormalizedNetwork


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
