"""R-CNN region classifier: the second stage of localization (He et al. 2015, appendix C).

Regions are cropped from the image, warped to a square, and each goes through the whole network.
B images of one shape, R regions per image, K classes. Boxes are in network-input pixels.
"""

from collections.abc import Sequence

from torch import Tensor

from backbones.features import Backbone
from backbones.pixel_normalization import PixelNormalizedNetwork
from detection.models.box_head import BoxPredictor
from detection.ops.roi_pool import pool_rois


class RegionClassifier(PixelNormalizedNetwork):
    """A backbone on warped regions, with output layers for class and box.

    Args:
        backbone: the classification network, without `fc`.
        box_predictor: predicts K+1 class logits, background last, and a box for each class.
        side: of a region after warping, in pixels.
        pixel_mean: RGB, on the scale 0..255.
        pixel_std: RGB, on the scale 0..255.
    """

    def __init__(
        self,
        backbone: Backbone,
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
        """Classify regions and predict the deltas that refine their boxes.

        Args:
            pixels: (B, 3, H, W) RGB on the scale 0..255, no padding.
            boxes: (B, R, 4) xyxy.

        Returns:
            class logits (B, R, K+1), background last, and deltas (B, R, K, 4) relative to `boxes`.
        """
        # Warping is RoIAlign on the image itself, at stride 1. A sampling ratio of 0 chooses the
        # number of samples per output pixel by the region's size: about one per input pixel.
        warped = pool_rois(
            [self.normalize(pixels)],
            [1],
            boxes,
            kind="roi_align",
            resolution=self.side,
            sampling_ratio=0,
        )
        class_logits, deltas = self.box_predictor(self.backbone(warped))
        # pooled regions are in one dimension (B * R)
        return class_logits.unflatten(0, boxes.shape[:2]), deltas.unflatten(0, boxes.shape[:2])
