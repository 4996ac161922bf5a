"""The four structures that pass between the rooms. They check themselves when made.

B images, G ground-truth boxes (padded), P proposals (padded), N boxes of one image.
Boxes are float32 xyxy pixels; sizes are (height, width). What is not there is masked, not absent.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class _Movable:
    """Dataclass of tensors (or None) that moves between devices as one."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Return a copy with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> Self:
        changes = {
            field.name: function(value) if isinstance(value, Tensor | _Movable) else value
            for field in fields(self)  # type: ignore[arg-type]
            for value in [getattr(self, field.name)]
        }
        return replace(self, **changes)  # type: ignore[type-var]


def _check(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype) -> None:
    fits = tensor.dim() == len(shape) and all(
        want is None or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype != dtype:
        expected = f"{tuple('any' if s is None else s for s in shape)} {dtype}"
        raise ValueError(f"{name}: expected {expected}, got {tuple(tensor.shape)} {tensor.dtype}")


@dataclass(frozen=True)
class ImageBatch(_Movable):
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
        _check("pixels", self.pixels, (batch, 3, None, None), torch.uint8)
        _check("sizes", self.sizes, (batch, 2), torch.int64)
        _check("original_sizes", self.original_sizes, (batch, 2), torch.int64)
        _check("image_ids", self.image_ids, (batch,), torch.int64)
        _check("seeds", self.seeds, (batch,), torch.int64)


@dataclass(frozen=True)
class Targets(_Movable):
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
        _check("boxes", self.boxes, (batch, count, 4), torch.float32)
        _check("labels", self.labels, (batch, count), torch.int64)
        _check("valid", self.valid, (batch, count), torch.bool)
        _check("is_crowd", self.is_crowd, (batch, count), torch.bool)


@dataclass(frozen=True)
class DetectionBatch(_Movable):
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
class Proposals(_Movable):
    """Candidate regions by falling score: boxes (B, P, 4), scores and valid (B, P)."""

    boxes: Tensor
    scores: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        batch, count = self.boxes.shape[:2]
        _check("boxes", self.boxes, (batch, count, 4), torch.float32)
        _check("scores", self.scores, (batch, count), torch.float32)
        _check("valid", self.valid, (batch, count), torch.bool)


@dataclass(frozen=True)
class Detections(_Movable):
    """Objects found in one image, by falling score, in original pixels.

    boxes: (N, 4) float32 xyxy. scores: (N,) float32 in [0, 1]. labels: (N,) int64 in 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        count = self.boxes.shape[0]
        _check("boxes", self.boxes, (count, 4), torch.float32)
        _check("scores", self.scores, (count,), torch.float32)
        _check("labels", self.labels, (count,), torch.int64)

    def __len__(self) -> int:
        """Return the number of objects."""
        return self.boxes.shape[0]
