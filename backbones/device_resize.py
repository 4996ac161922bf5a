"""Crops of images on a device, resized by OpenCV's rules as two matrix products.

S side of the square result.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.device_copies import copy_of_array

_CHUNK = 8
"""Images whose weights are computed at once: some 1 GB if one of them has a side of 4000 pixels."""


def resized_crops(
    images: Sequence[Tensor], windows: Sequence[tuple[slice, slice]], side: int
) -> Tensor:
    """Return the windows of images, resized to `side` x `side` as `images.resize_pixels` does.

    Values differ by at most 1 from OpenCV's, which rounds the weights of enlarged images to 11
    bits; with `loop.tf32` on a GPU a few per cent of all values do.

    Args:
        images: (3, H, W) uint8, on one device; at least one.
        windows: rows and columns of each image, whole pixels with a start and a stop.
        side: height and width of the result.

    Returns:
        (B, 3, side, side) uint8, channels last in memory.
    """
    device = images[0].device
    result = torch.empty(
        (len(images), 3, side, side),
        dtype=torch.uint8,
        device=device,
        memory_format=torch.channels_last,
    )
    for first in range(0, len(images), _CHUNK):
        chosen = windows[first : first + _CHUNK]
        sizes = [[part.stop - part.start for part in window] for window in chosen]
        by_row, by_column = resize_weights(sizes, side, device=device)
        for number, ((rows, columns), (height, width)) in enumerate(
            zip(chosen, sizes, strict=True)
        ):
            crop = images[first + number][:, rows, columns].float()
            resized = by_row[number, :, :height] @ crop @ by_column[number, :, :width].mT
            # at half the size OpenCV rounds halves up, otherwise to even
            is_half = height == width == 2 * side
            rounded = (resized + 0.5).floor_() if is_half else resized.round_()
            result[first + number] = rounded.clamp_(0, 255)
    return result


def resize_weights(
    sizes: Sequence[Sequence[int]], side: int, *, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the weights of each source row and of each source column in the result.

    Where neither side grows, a result pixel is the mean over the area that it covers (INTER_AREA).
    Where neither shrinks, it is linear between the two nearest pixel centres (INTER_LINEAR). Where
    one shrinks and the other grows, OpenCV's INTER_AREA is linear with other positions.

    Args:
        sizes: (height, width) of each source.
        side: height and width of the result.
        device: where they are computed.

    Returns:
        (B, S, largest height) and (B, S, largest width) float32; each row sums to 1, with zeros
        beyond the source's own size.
    """
    lengths = copy_of_array(np.array(sizes, np.float64), device)[:, :, None, None]
    longest = max(max(size) for size in sizes)
    scale = lengths / side  # (B, 2, 1, 1): rows and columns
    target = torch.arange(side, device=device, dtype=torch.float64)[:, None]
    source = torch.arange(longest, device=device, dtype=torch.float64)
    start, end = target * scale, (target + 1) * scale
    covered = torch.minimum(end, source + 1) - torch.maximum(start, source)
    area = covered.clamp(min=0) / scale
    centres = (target + 0.5) * scale - 0.5
    # the cell's share beyond the pixel at its start
    left = start.floor()
    fraction = target + 1 - (left + 1) / scale
    edges = left + torch.where(fraction > 0, fraction - fraction.floor(), 0.0)
    shrinks, grows = (found.any(dim=1, keepdim=True) for found in (scale > 1, scale < 1))
    positions = torch.where(shrinks, edges, centres).clamp(min=0)
    positions = torch.minimum(positions, lengths - 1)
    linear = (1 - (source - positions).abs()).clamp(min=0)
    weights = torch.where(shrinks & ~grows, area, linear).float()
    heights, widths = (max(size[axis] for size in sizes) for axis in (0, 1))
    return weights[:, 0, :, :heights], weights[:, 1, :, :widths]
