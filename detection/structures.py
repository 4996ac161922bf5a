"""Data structures of detection: images, targets, proposals and detections, checked when created.

B images, G ground-truth boxes (padded), P proposals (padded), N boxes of one image.
Boxes are float32 xyxy pixels; sizes are (height, width). Every image of a batch has the same number
of rows; a `valid` mask marks those that are not padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detection.ops.rle import decode
from engine.structures import Movable, check_tensor


@dataclass(frozen=True)
class ImageBatch(Movable):
    """Images padded right and bottom to one shape.

    pixels: (B, 3, H, W) uint8 RGB. sizes: (B, 2) int64 before padding. original_sizes: (B, 2) int64
    of the files (after EXIF rotation). image_ids: (B,) int64 from the annotation file. seeds: (B,)
    int64, one random seed per image: it determines all random choices made on the device for this
    image. So they depend neither on the other images of the batch nor on the number of processes.
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

    boxes: (B, G, 4) float32, zeros if not valid. labels: (B, G) int64 in 0..K-1, 0 if not valid.
    valid: (B, G) bool. is_crowd: (B, G) bool, regions to ignore. G is at least 1.
    masks: (B, G, H, ceil(W / 8)) uint8, masks of the padded image packed by `ops.masks.pack_bits`,
    zero for crowds; None if the task has no masks.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    is_crowd: Tensor
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        batch, count = self.boxes.shape[:2]
        assert count >= 1, "G is at least 1; pad with an invalid row"
        check_tensor("boxes", self.boxes, (batch, count, 4), torch.float32)
        check_tensor("labels", self.labels, (batch, count), torch.int64)
        check_tensor("valid", self.valid, (batch, count), torch.bool)
        check_tensor("is_crowd", self.is_crowd, (batch, count), torch.bool)
        if self.masks is not None:
            check_tensor("masks", self.masks, (batch, count, None, None), torch.uint8)


@dataclass(frozen=True)
class DetectionBatch(Movable):
    """A batch of images with their targets.

    mask_count: scalar float32, divisor of the mask loss: the number of foreground samples, averaged
    over the parts of a step. None if a step has one part; then the loss counts its own samples.
    other_scales: the images at the other scales of multi-scale testing, as `EvalSizes` orders them.
    """

    images: ImageBatch
    targets: Targets
    mask_count: Tensor | None = None
    other_scales: tuple[ImageBatch, ...] = ()

    @property
    def at_all_scales(self) -> tuple[ImageBatch, ...]:
        """The images at each of the sizes of `EvalSizes`."""
        return (self.images, *self.other_scales)

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
class RunLengthMasks:
    """N masks of one image as COCO's compressed run lengths, a few hundred bytes each.

    size: (height, width) of the image. codes: N byte strings, `counts` of COCO's RLE.
    """

    size: tuple[int, int]
    codes: tuple[bytes, ...]

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.codes)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return mask `index`, (height, width) bool."""
        return decode(self.codes[index], self.size)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the masks one by one."""
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Detections(Movable):
    """Detected objects of one image, by falling score, in original pixels.

    boxes: (N, 4) float32 xyxy. scores: (N,) float32 in [0, 1]. labels: (N,) int64 in 0..K-1.
    masks: N masks of the whole image; None if the network has no mask head.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: RunLengthMasks | None = None

    def __post_init__(self) -> None:
        count = self.boxes.shape[0]
        check_tensor("boxes", self.boxes, (count, 4), torch.float32)
        check_tensor("scores", self.scores, (count,), torch.float32)
        check_tensor("labels", self.labels, (count,), torch.int64)
        if self.masks is not None and len(self.masks) != count:
            raise ValueError(f"masks: expected {count}, got {len(self.masks)}")

    def __len__(self) -> int:
        """Return the number of objects."""
        return self.boxes.shape[0]

    def above(self, score_thresh: float) -> "Detections":
        """Return the detections with at least this score."""
        return self.where(self.scores >= score_thresh)

    def where(self, keep: Tensor) -> "Detections":
        """Return the detections that `keep` (N,) bool marks."""
        masks = self.masks
        if masks is not None:
            codes = zip(masks.codes, keep.tolist(), strict=True)
            masks = RunLengthMasks(masks.size, tuple(code for code, kept in codes if kept))
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], masks)

    def mask_array(self) -> np.ndarray | None:
        """Return the masks as (N, H, W) bool, a byte for each pixel; None without masks."""
        if self.masks is None:
            return None
        return np.array(list(self.masks), np.bool_).reshape(len(self), *self.masks.size)
