"""The four structures that pass between the rooms. They check themselves when made.

B images, G ground-truth boxes (padded), P proposals (padded), N boxes of one image.
Boxes are float32 xyxy pixels; sizes are (height, width). What is not there is masked, not absent.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.structures import Movable, check_tensor


@dataclass(frozen=True)
class ImageBatch(Movable):
    """Pictures padded right and bottom to one shape.

    pixels: (B, 3, H, W) uint8 RGB. sizes: (B, 2) int64 before padding. original_sizes: (B, 2) int64
    of the files (after EXIF rotation). image_ids: (B,) int64 from the annotation file. seeds: (B,)
    int64, each picture's own draw: all random choices made on the device for that picture come from
    it, so they depend neither on its neighbours in the batch nor on the number of processes.
    """

    pixels: Tensor
    sizes: Tensor
    original_sizes: Tensor
    image_ids: Tensor
    seeds: Tensor

    def __post_init__(self) -> None:
        batch = self.pixels.shape[0]
        check_tensor("pixels", self.pixels, (batch, 3, None, None), torch.uint8)
        check_tensor("sizes", self.sizes, (batch, 2), torch.int64)
        check_tensor("original_sizes", self.original_sizes, (batch, 2), torch.int64)
        check_tensor("image_ids", self.image_ids, (batch,), torch.int64)
        check_tensor("seeds", self.seeds, (batch,), torch.int64)


@dataclass(frozen=True)
class Targets(Movable):
    """Ground truth in network-input pixels.

    boxes: (B, G, 4) float32, zeros where not valid. labels: (B, G) int64 in 0..K-1, 0 where not
    valid.
    valid: (B, G) bool. is_crowd: (B, G) bool, regions to be ignored. G is at least 1.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    is_crowd: Tensor

    def __post_init__(self) -> None:
        batch, count = self.boxes.shape[:2]
        assert count >= 1, "G is at least 1; pad with an invalid row"
        check_tensor("boxes", self.boxes, (batch, count, 4), torch.float32)
        check_tensor("labels", self.labels, (batch, count), torch.int64)
        check_tensor("valid", self.valid, (batch, count), torch.bool)
        check_tensor("is_crowd", self.is_crowd, (batch, count), torch.bool)


@dataclass(frozen=True)
class DetectionBatch(Movable):
    """What the detection data sets collate."""

    images: ImageBatch
    targets: Targets

    @property
    def image_ids(self) -> Tensor:
        """(B,) int64."""
        return self.images.image_ids

    def __len__(self) -> int:
        """Return the number of images."""
        return self.images.pixels.shape[0]


@dataclass(frozen=True)
class Proposals(Movable):
    """Candidate regions by falling score: boxes (B, P, 4), scores and valid (B, P)."""

    boxes: Tensor
    scores: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        batch, count = self.boxes.shape[:2]
        check_tensor("boxes", self.boxes, (batch, count, 4), torch.float32)
        check_tensor("scores", self.scores, (batch, count), torch.float32)
        check_tensor("valid", self.valid, (batch, count), torch.bool)


@dataclass(frozen=True)
class Detections(Movable):
    """Objects found in one image, by falling score, in original pixels.

    boxes: (N, 4) float32 xyxy. scores: (N,) float32 in [0, 1]. labels: (N,) int64 in 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        count = self.boxes.shape[0]
        check_tensor("boxes", self.boxes, (count, 4), torch.float32)
        check_tensor("scores", self.scores, (count,), torch.float32)
        check_tensor("labels", self.labels, (count,), torch.int64)

    def __len__(self) -> int:
        """Return the number of objects."""
        return self.boxes.shape[0]
