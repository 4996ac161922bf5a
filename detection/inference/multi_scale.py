"""RoI features merged over two scales of an image by their maximum (ResNet paper, appendix B).

B images, R RoIs per image, S scales, D features of a RoI.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detection.models.faster_rcnn import FasterRCNN
from detection.ops.boxes import box_area, box_factors, take_boxes
from detection.structures import ImageBatch

CANONICAL_AREA = 224.0**2
"""Area of a RoI, in pixels, that the scale is chosen for: that of images in pretraining."""


def scale_factors(images: ImageBatch, scales: Sequence[ImageBatch]) -> Tensor:
    """Return (B, S, 4) factors of x1, y1, x2, y2 from pixels of `images` to those of each scale."""
    return torch.stack([box_factors(images.sizes, scale.sizes) for scale in scales], dim=1)


def nearest_scales(boxes: Tensor, factors: Tensor) -> Tensor:
    """Return the two scales at which each RoI's area is nearest 224 x 224 pixels.

    They are adjacent, because the area grows with the scale. (SPP-net, He et al. 2014, section 3.1,
    takes the nearest scale; Ren et al. 2015, "networks on convolutional feature maps", takes two.)

    Args:
        boxes: (B, R, 4) xyxy.
        factors: (B, S, 4) to the pixels of each scale, rising; S is at least 2.

    Returns:
        (B, R, 2) int64 in 0..S-1, the nearest first; of equally near ones the smaller. 0 and 1 for
        an empty box.
    """
    areas = box_area(boxes[:, :, None] * factors[:, None])  # (B, R, S)
    distances = (areas - CANONICAL_AREA).abs()
    return distances.argsort(dim=2, stable=True)[..., :2]


class MultiScaleRegions:
    """The features of RoIs from feature maps of an image at several scales.

    Args:
        network: pools RoIs and computes their features.
        pyramids: its `features` at each scale, rising.
        factors: (B, S, 4), the `scale_factors` of boxes.
    """

    def __init__(
        self, network: FasterRCNN, pyramids: Sequence[Mapping[str, Tensor]], factors: Tensor
    ) -> None:
        self._network = network
        self._pyramids = pyramids
        self._factors = factors

    def vectors(self, boxes: Tensor, stage: int) -> Tensor:
        """Return the element-wise maximum over the two `nearest_scales` of boxes.

        Args:
            boxes: (B, R, 4); R may be 0.
            stage: of the region head.

        Returns:
            (B, R, D).
        """
        scale_idxs = nearest_scales(boxes, self._factors).flatten(1)  # (B, R * 2)
        # (B, S, 4) at (B, R * 2) -> (B, R * 2, 4)
        factors = take_boxes(self._factors, scale_idxs)
        at_scales = boxes.repeat_interleave(2, dim=1) * factors
        vectors: Tensor = self._network.region_vectors(
            self._pyramids, at_scales, stage, scale_idxs=scale_idxs
        )
        pairs: Tensor = vectors.unflatten(1, (-1, 2))
        return pairs.amax(dim=2)
