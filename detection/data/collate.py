"""Samples of different sizes into one batch of fixed shape.

B images, G ground-truth boxes (padded), N boxes of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detection.ops.masks import pack_bits
from detection.structures import DetectionBatch, ImageBatch, Targets


@dataclass(frozen=True)
class Sample:
    """One image ready for the network.

    pixels: (H, W, 3) uint8 RGB. boxes: (N, 4) float32 xyxy in these pixels; N may be 0. labels:
    (N,) int64. is_crowd: (N,) bool, regions to be ignored. original_size: (height, width) of the
    file, EXIF applied. seed: the image's own draw, from which the network's random choices for it
    come too. masks: (N, H, W) bool, zero for crowd regions; None where nothing asks for masks.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    original_size: tuple[int, int]
    image_id: int
    seed: int
    masks: np.ndarray | None = None


def collate_detection(
    samples: Sequence[Sample],
    *,
    size_divisor: int,
    batch_shape: tuple[int, int] = (1, 1),
    gt_multiple: int = 8,
) -> DetectionBatch:
    """Pad at least one sample right and bottom with zeros to one shape.

    The shape holds every sample and `batch_shape`, (height, width), which the other parts of the
    same global batch ask for. Height and width are rounded up to `size_divisor` and G to
    `gt_multiple` (at least that), so that a compiled network meets few shapes. Pixels lie channels
    last, as they were decoded.
    """
    assert samples, "a batch holds at least one sample"
    sizes = torch.tensor([sample.pixels.shape[:2] for sample in samples])
    largest = torch.cat([sizes, torch.tensor([batch_shape])]).amax(dim=0)
    height, width = (round_up(int(side), size_divisor) for side in largest)
    count = round_up(max(1, *(len(sample.labels) for sample in samples)), gt_multiple)
    batch = len(samples)
    pixels = torch.empty(batch, height, width, 3, dtype=torch.uint8)
    boxes = torch.zeros(batch, count, 4)
    labels = torch.zeros(batch, count, dtype=torch.int64)
    valid = torch.zeros(batch, count, dtype=torch.bool)
    is_crowd = torch.zeros(batch, count, dtype=torch.bool)
    for i, sample in enumerate(samples):
        h, w = sample.pixels.shape[:2]
        n = len(sample.labels)
        pixels[i, :h, :w] = torch.from_numpy(sample.pixels)
        pixels[i, :h, w:] = 0
        pixels[i, h:] = 0
        boxes[i, :n] = torch.from_numpy(sample.boxes)
        labels[i, :n] = torch.from_numpy(sample.labels)
        is_crowd[i, :n] = torch.from_numpy(sample.is_crowd)
        valid[i, :n] = True
    images = ImageBatch(
        pixels=pixels.permute(0, 3, 1, 2),
        sizes=sizes,
        original_sizes=torch.tensor([sample.original_size for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        seeds=torch.tensor([sample.seed for sample in samples]),
    )
    masks = None
    if any(sample.masks is not None for sample in samples):
        masks = _collate_masks(samples, (batch, count, height, width))
    return DetectionBatch(
        images=images,
        targets=Targets(boxes=boxes, labels=labels, valid=valid, is_crowd=is_crowd, masks=masks),
    )


def _collate_masks(samples: Sequence[Sample], shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Return the packed masks (B, G, H, ceil(W / 8)) uint8 of all samples."""
    batch, count, height, width = shape
    packed = torch.zeros(batch, count, height, -(-width // 8), dtype=torch.uint8)
    for i, sample in enumerate(samples):
        assert sample.masks is not None, "all samples of a batch have masks, or none has"
        bits = torch.from_numpy(pack_bits(sample.masks))
        packed[i, : bits.shape[0], : bits.shape[1], : bits.shape[2]] = bits
    return packed


def round_up(length: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple
