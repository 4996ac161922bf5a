"""R-CNN: regions cut out of the image, each put through the whole network (appendix C).

B images of one shape, R regions of each, K classes. Frame: network-input pixels.
"""

from collections.abc import Sequence

from torch import Tensor

from backbones.pixel_normalization import PixelNormalizedNetwork
from backbones.resnet import ResNet
from detection.models.box_head import BoxPredictor
from detection.ops.roi_pool import pool_rois


class RegionClassifier(PixelNormalizedNetwork):
    """A residual network on warped regions, with two output layers per class.

    Args:
        backbone: the classification network, without `fc`.
        box_predictor: classes, background last, and a box for each class.
        side: of a region after warping, in pixels.
        pixel_mean: RGB, on the scale 0..255.
        pixel_std: the same.
    """

    def __init__(
        self,
        backbone: ResNet,
        box_predictor: BoxPredictor,
        *,
        side: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.backbone = backbone
        self.box_predictor = box_predictor
        self.side = side

    def forward(self, pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Classify regions and move their boxes.

        Args:
            pixels: (B, 3, H, W) RGB on the scale 0..255, no padding.
            boxes: (B, R, 4) xyxy.

        Returns:
            class logits (B, R, K+1), background last, and deltas (B, R, K, 4) from `boxes`.
        """
        # Warping is RoI align on the image itself: about one sample for each pixel.
        warped = pool_rois(
            [self.normalize(pixels)],
            [1],
            boxes,
            kind="roi_align",
            resolution=self.side,
            sampling_ratio=0,
        )
        class_logits, deltas = self.box_predictor(self.backbone(warped))
        return class_logits.unflatten(0, boxes.shape[:2]), deltas.unflatten(0, boxes.shape[:2])
