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
    masks: (N, H, W) bool, zero for crowd regions; None if masks are not needed. other_pixels: the
    image at the other scales of multi-scale testing, each (H', W', 3) uint8.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    original_size: tuple[int, int]
    image_id: int
    seed: int
    masks: np.ndarray | None = None
    other_pixels: tuple[np.ndarray, ...] = ()


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
    pixels = [sample.pixels for sample in samples]
    images = _collate_images(pixels, samples, size_divisor=size_divisor, batch_shape=batch_shape)
    height, width = images.pixels.shape[2:]
    count = round_up(max(1, *(len(sample.labels) for sample in samples)), gt_multiple)
    batch = len(samples)
    boxes = torch.zeros(batch, count, 4)
    labels = torch.zeros(batch, count, dtype=torch.int64)
    valid = torch.zeros(batch, count, dtype=torch.bool)
    is_crowd = torch.zeros(batch, count, dtype=torch.bool)
    for i, sample in enumerate(samples):
        n = len(sample.labels)
        boxes[i, :n] = torch.from_numpy(sample.boxes)
        labels[i, :n] = torch.from_numpy(sample.labels)
        is_crowd[i, :n] = torch.from_numpy(sample.is_crowd)
        valid[i, :n] = True
    masks = None
    if any(sample.masks is not None for sample in samples):
        masks = _collate_masks(samples, (batch, count, height, width))
    return DetectionBatch(
        images=images,
        targets=Targets(boxes=boxes, labels=labels, valid=valid, is_crowd=is_crowd, masks=masks),
        other_scales=tuple(
            _collate_images(pixels, samples, size_divisor=size_divisor)
            for pixels in zip(*(sample.other_pixels for sample in samples), strict=True)
        ),
    )


def _collate_images(
    pixels: Sequence[np.ndarray],
    samples: Sequence[Sample],
    *,
    size_divisor: int,
    batch_shape: tuple[int, int] = (1, 1),
) -> ImageBatch:
    """Pad the images (H, W, 3) of some samples to one shape; see `collate_detection`."""
    sizes = torch.tensor([image.shape[:2] for image in pixels])
    largest = torch.cat([sizes, torch.tensor([batch_shape])]).amax(dim=0)
    height, width = (round_up(int(side), size_divisor) for side in largest)
    # not zeroed: the loop writes every pixel, the image and then the padding right of and below it
    padded = torch.empty(len(pixels), height, width, 3, dtype=torch.uint8)
    for row, image in zip(padded, pixels, strict=True):
        h, w = image.shape[:2]
        row[:h, :w] = torch.from_numpy(image)
        row[:h, w:] = 0
        row[h:] = 0
    return ImageBatch(
        pixels=padded.permute(0, 3, 1, 2),  # a view: NCHW shape, NHWC memory
        sizes=sizes,
        original_sizes=torch.tensor([sample.original_size for sample in samples]),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        seeds=torch.tensor([sample.seed for sample in samples]),
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
