"""Batch of labelled images for classification. B images, K classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.structures import Movable, check_tensor


@dataclass(frozen=True)
class ClassificationBatch(Movable):
    """Images of one shape with their labels.

    pixels: (B, 3, H, W) uint8 RGB. labels: (B,) int64 in 0..K-1. image_ids: (B,) int64, index in
    the dataset. seeds: (B,) int64, a random seed per image, from which all random choices on the
    device are made.
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
