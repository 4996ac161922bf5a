"""What passes between the rooms of classification. B images, K classes, V views of an image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.structures import Movable, check_tensor


@dataclass(frozen=True)
class LabelledBatch(Movable):
    """Images of one shape, with their classes.

    pixels: (B, 3, H, W) uint8 RGB. labels: (B,) int64 in 0..K-1. image_ids: (B,) int64, the place
    in the data set. seeds: (B,) int64, each image's own draw: all random choices made on the
    device for that image come from it.
    """

    pixels: Tensor
    labels: Tensor
    image_ids: Tensor
    seeds: Tensor

    def __post_init__(self) -> None:
        batch = self.pixels.shape[0]
        check_tensor("pixels", self.pixels, (batch, 3, None, None), torch.uint8)
        check_tensor("labels", self.labels, (batch,), torch.int64)
        check_tensor("image_ids", self.image_ids, (batch,), torch.int64)
        check_tensor("seeds", self.seeds, (batch,), torch.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.pixels.shape[0]
