"""Instance masks: cut to the boxes of candidates for training, pasted back into their images.

B images, G ground-truth masks, S boxes of each image, M cells along a mask's side, L pixels of an
axis, H, W height and width. Boxes are xyxy pixels.

Masks travel as bits, eight pixels of a row to a byte: two hundred masks in an image of 800 x 1333
take 27 MB. Bilinear sampling goes along one axis after the other, so that cutting and pasting are
two small matrix products each.
"""

import math

import numpy as np
import torch
from torch import Tensor

from detection.ops.bilinear import bilinear_taps
from detection.ops.precision import at_least_float32
from detection.ops.rle import encode_window

_CHUNK_BYTES = 1 << 26  # of unpacked masks held at a time while they are cut
_THRESHOLD = 0.5


def pack_bits(masks: np.ndarray) -> np.ndarray:
    """Return (..., H, ceil(W / 8)) uint8 for masks (..., H, W) bool; the first pixel is bit 7."""
    return np.packbits(masks, axis=-1)


def unpack_bits(packed: Tensor, *, width: int) -> Tensor:
    """Return (..., H, W) uint8, 0 or 1, for what `pack_bits` made, on any device."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    bits = (packed[..., None] >> shifts) & 1
    return bits.flatten(-2)[..., :width]


def cut_masks(
    masks: Tensor, idxs: Tensor, boxes: Tensor, *, width: int, resolution: int, aligned: bool
) -> Tensor:
    """Return what each box holds of its mask, as M x M cells: RoIAlign of the mask.

    A cell averages bilinear samples, about one for each pixel that it covers along an axis.

    Args:
        masks: (B, G, H, ceil(W / 8)) uint8, of `pack_bits`, in network-input pixels.
        idxs: (B, S) int64 into G, the mask of each box.
        boxes: (B, S, 4) in the same pixels; S may be 0.
        width: W.
        resolution: M.
        aligned: pixel centres are at half-integer coordinates. False is half a pixel off, as
            torchvision's detectors were trained.

    Returns:
        (B, S, M, M) float32 in [0, 1], the share of each cell that the mask covers.
    """
    height = masks.shape[2]
    batch, count = idxs.shape
    images = torch.arange(batch, device=idxs.device)[:, None].expand_as(idxs)
    rows, columns = (
        _sampling_weights(boxes[..., axis::2].flatten(0, 1), length, resolution, aligned=aligned)
        for axis, length in ((1, height), (0, width))
    )
    size = max(1, _CHUNK_BYTES // (4 * height * width))
    chosen = zip(
        images.flatten().split(size),
        idxs.flatten().split(size),
        rows.split(size),
        columns.split(size),
        strict=True,
    )
    cut = [
        row_weights @ unpack_bits(masks[image, idx], width=width).float() @ column_weights.mT
        for image, idx, row_weights, column_weights in chosen
    ]
    return torch.cat(cut).view(batch, count, resolution, resolution)


def _sampling_weights(spans: Tensor, length: int, resolution: int, *, aligned: bool) -> Tensor:
    """Return (N, M, L): how much of each of L pixels is in each of M cells along an axis.

    spans: (N, 2), where the boxes begin and end. The arithmetic is that of torchvision's RoIAlign
    with `sampling_ratio=-1`, step for step.
    """
    spans = at_least_float32(spans) - (0.5 if aligned else 0.0)
    low, extent = spans[:, :1], spans[:, 1:] - spans[:, :1]
    if not aligned:
        extent = extent.clamp(min=1)
    cell = extent / resolution
    num_samples = cell.ceil().clamp(min=1)
    samples = torch.arange(math.ceil((length + 1) / resolution) + 1, device=spans.device)
    starts = low + torch.arange(resolution, device=spans.device) * cell  # (N, M)
    points = starts[..., None] + ((samples + 0.5) * (cell / num_samples))[:, None]  # (N, M, T)
    taken = (samples < num_samples) & (extent > 0)
    pixels, weights = bilinear_taps(points, torch.full_like(points, length, dtype=torch.int64))
    weights = weights * (taken / num_samples)[:, None, :, None]
    empty = weights.new_zeros(len(spans), resolution, length)
    return empty.scatter_add_(2, pixels.flatten(2), weights.flatten(2))


def paste_mask(
    cells: np.ndarray, box: np.ndarray, size: tuple[int, int], *, aligned: bool
) -> bytes:
    """Put one predicted mask into its image, and encode it; memory is that of its box.

    A pixel belongs to the object where the bilinear interpolation of the cells, zero around them,
    is above 0.5 at its centre.

    Args:
        cells: (M, M) float32 probabilities over the box.
        box: (4,) xyxy in the image's pixels; may reach beyond it.
        size: (height, width) of the image.
        aligned: exact boxes. False rounds the box to whole pixels as torchvision's
            `paste_masks_in_image` does, whose masks this gives to the last pixel.

    Returns:
        COCO's compressed run lengths.
    """
    left, columns = _pasting_weights(box[0::2], size[1], len(cells), aligned=aligned)
    top, rows = _pasting_weights(box[1::2], size[0], len(cells), aligned=aligned)
    window = rows @ cells @ columns.T > _THRESHOLD
    return encode_window(window, top=top, left=left, size=size)


def _pasting_weights(
    span: np.ndarray, length: int, resolution: int, *, aligned: bool
) -> tuple[int, np.ndarray]:
    """Return the first pixel that a span covers, and the weights (pixels, M) of the cells there."""
    begin, end = np.float32(span[0]), np.float32(span[1])
    if aligned:
        first, last = math.floor(begin), math.ceil(end)
        pixels = np.arange(max(first, 0), min(last, length))
        places = (pixels + 0.5 - begin) * (resolution / max(float(end - begin), 1e-6)) - 0.5
    else:
        # The mask has a border of one cell, the box grows with it and is cut to whole pixels.
        half = (end - begin) * np.float32(0.5) * np.float32((resolution + 2) / resolution)
        centre = (begin + end) * np.float32(0.5)
        first, last = int(centre - half), int(centre + half) + 1
        last = max(last, first + 1)
        pixels = np.arange(max(first, 0), min(last, length))
        places = (pixels - first + 0.5) * ((resolution + 2) / (last - first)) - 0.5
        places = np.maximum(places, 0) - 1
    weights = np.maximum(1 - np.abs(places[:, None] - np.arange(resolution)), 0)
    return int(pixels[0]) if len(pixels) else 0, weights.astype(np.float32)
