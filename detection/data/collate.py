"""Collation of samples of different sizes into one padded batch.

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
    """One image, transformed for the network.

    pixels: (H, W, 3) uint8 RGB. boxes: (N, 4) float32 xyxy in these pixels; N may be 0. labels:
    (N,) int64. is_crowd: (N,) bool, regions to ignore. original_size: (height, width) of the file
    after its EXIF rotation. seed: the image's random seed, also used by the network's sampling.
    masks: (N, H, W) bool, zero for crowd regions; None if masks are not needed.
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
    """Pad one or more samples with zeros, at the right and the bottom, to one shape.

    The shape contains every sample and `batch_shape` (height, width), which is common to all parts
    of a global batch. Height and width are rounded up to multiples of `size_divisor`, and G to a
    multiple of `gt_multiple` (at least one), so that a compiled network gets few different shapes.
    Pixels are in channels-last memory format, as they were decoded.
    """
    assert samples, "expected at least one sample in a batch"
    sizes = torch.tensor([sample.pixels.shape[:2] for sample in samples])
    largest = torch.cat([sizes, torch.tensor([batch_shape])]).amax(dim=0)
    height, width = (round_up(int(side), size_divisor) for side in largest)
    count = round_up(max(1, *(len(sample.labels) for sample in samples)), gt_multiple)
    batch = len(samples)
    # not zeroed: the loop writes every pixel, the image and then the padding right of and below it
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
        pixels=pixels.permute(0, 3, 1, 2),  # a view: NCHW shape, NHWC memory
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
    """Return the masks of all samples, (B, G, H, ceil(W / 8)) uint8 with one pixel per bit."""
    batch, count, height, width = shape
    # -(-a // b) is a / b rounded up
    packed = torch.zeros(batch, count, height, -(-width // 8), dtype=torch.uint8)
    for i, sample in enumerate(samples):
        assert sample.masks is not None, "expected masks in all samples of a batch or in none"
        # The bits of a row start at its left edge, so padding adds zero bytes at the right and rows
        # at the bottom, and zero bits within the last byte of a row.
        bits = torch.from_numpy(pack_bits(sample.masks))
        packed[i, : bits.shape[0], : bits.shape[1], : bits.shape[2]] = bits
    return packed


def round_up(length: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple
