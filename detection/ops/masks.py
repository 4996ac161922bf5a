"""Instance masks: crop them to boxes as training targets, and paste predicted ones into images.

B images, G ground-truth masks, S boxes per image, M cells along a mask's side, L pixels along an
axis, H, W height and width. Boxes are xyxy pixels.

Masks are stored as bits, eight pixels of a row in a byte: 200 masks in an image of 800 x 1333 take
27 MB. Bilinear sampling is separable: along one axis, then along the other. So pasting, and on a
CPU cropping, are two small matrix products each.
"""

import math

import numpy as np
import torch
from torch import Tensor

from detection.ops.bilinear import bilinear_taps
from detection.ops.precision import at_least_float32
from detection.ops.rle import encode_window
from engine.kernels import kernels_kind

_CPU_CHUNK_BYTES = 1 << 26  # 64 MiB of unpacked float32 masks at a time
_CHUNK_BYTES = 1 << 30  # 1 GiB; on a GPU each chunk costs a few launches
THRESHOLD = 0.5


def pack_bits(masks: np.ndarray) -> np.ndarray:
    """Return (..., H, ceil(W / 8)) uint8 for masks (..., H, W) bool; the first pixel is bit 7."""
    return np.packbits(masks, axis=-1)


def unpack_bits(packed: Tensor, *, width: int) -> Tensor:
    """Return (..., H, W) uint8, 0 or 1: the inverse of `pack_bits`, on any device."""
    # (..., H, bytes, 1) >> (8,) -> (..., H, bytes, 8) -> (..., H, bytes * 8), cut to W
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    bits = (packed[..., None] >> shifts) & 1
    return bits.flatten(-2)[..., :width]


def crop_masks(
    masks: Tensor, idxs: Tensor, boxes: Tensor, *, width: int, resolution: int, aligned: bool
) -> Tensor:
    """Return the part of a mask inside each box, resampled to M x M cells: RoIAlign of the mask.

    A cell is the mean of bilinear samples, about one for each pixel that it covers along an axis.
    The fast implementation is for CPUs, and for deterministic runs.

    Args:
        masks: (B, G, H, ceil(W / 8)) uint8 from `pack_bits`, in network-input pixels.
        idxs: (B, S) int64 into G, the mask of each box.
        boxes: (B, S, 4) in the same pixels; S may be 0.
        width: W.
        resolution: M.
        aligned: pixel centres are at half-integer coordinates. False is half a pixel off, as in the
            training of torchvision's detectors.

    Returns:
        (B, S, M, M) float32 in [0, 1], the share of each cell that the mask covers.
    """
    # One operator of a compiled graph: the number of chunks depends on the size of the images.
    crop = crop_masks_operator if torch.compiler.is_compiling() else _crop_masks
    cropped: Tensor = crop(masks, idxs, boxes, width=width, resolution=resolution, aligned=aligned)
    return cropped


def _crop_masks(
    masks: Tensor, idxs: Tensor, boxes: Tensor, *, width: int, resolution: int, aligned: bool
) -> Tensor:
    # torchvision's deterministic RoIAlign needs the memory of all samples of all boxes
    by_products = masks.device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    is_fast = kernels_kind() == "fast" and by_products
    crop = _crop_by_products if is_fast else _crop_by_torchvision
    return crop(masks, idxs, boxes, width=width, resolution=resolution, aligned=aligned)


crop_masks_operator = torch.library.custom_op("resdet::crop_masks", _crop_masks, mutates_args=())
"""`crop_masks` as one operator of a compiled graph."""


@crop_masks_operator.register_fake
def _(
    masks: Tensor, idxs: Tensor, boxes: Tensor, *, width: int, resolution: int, aligned: bool
) -> Tensor:
    shape = (*idxs.shape, resolution, resolution)
    return torch.empty(shape, dtype=torch.float32, device=idxs.device)


def _crop_by_torchvision(
    masks: Tensor, idxs: Tensor, boxes: Tensor, *, width: int, resolution: int, aligned: bool
) -> Tensor:
    """Reference implementation: torchvision's RoIAlign of the unpacked masks."""
    from torchvision.ops import roi_align  # not at the top: importing it takes a second

    batch, num_masks, height = masks.shape[:3]
    size = max(1, _CHUNK_BYTES // (4 * num_masks * height * width))  # images per chunk
    # number of each box's mask within its chunk (B, S)
    places = torch.arange(batch, device=idxs.device)[:, None] % size * num_masks + idxs
    # For a box that is not finite torchvision's kernels would read outside the mask.
    finite = boxes.isfinite().all(dim=2, keepdim=True)
    # (B, S, 5): the mask's number, then the box
    rois = torch.cat([places[..., None].to(boxes.dtype), boxes.where(finite, 0.0)], dim=2)
    cropped = [
        roi_align(  # (n * G, 1, H, W) and (n * S, 5) -> (n * S, 1, M, M)
            unpack_bits(some_masks, width=width).float().flatten(0, 1)[:, None],
            some_rois.flatten(0, 1),
            resolution,
            aligned=aligned,
        )
        for some_masks, some_rois in zip(masks.split(size), rois.split(size), strict=True)
    ]
    return torch.cat(cropped).view(*idxs.shape, resolution, resolution)


def _crop_by_products(
    masks: Tensor, idxs: Tensor, boxes: Tensor, *, width: int, resolution: int, aligned: bool
) -> Tensor:
    """Fast implementation on a CPU: products with the sampling weights of the rows and columns."""
    height = masks.shape[2]
    batch, count = idxs.shape
    images = torch.arange(batch, device=idxs.device)[:, None].expand_as(idxs)
    # sampling weights of the B * S boxes along y (B * S, M, H) and x (B * S, M, W); a box's y1, y2
    # are every second coordinate from 1 on, its x1, x2 from 0 on
    rows, columns = (
        _sampling_weights(boxes[..., axis::2].flatten(0, 1), length, resolution, aligned=aligned)
        for axis, length in ((1, height), (0, width))
    )
    size = max(1, _CPU_CHUNK_BYTES // (4 * height * width))  # masks per chunk, 4 bytes a pixel
    chosen = zip(
        images.flatten().split(size),
        idxs.flatten().split(size),
        rows.split(size),
        columns.split(size),
        strict=True,
    )
    cut = [  # (n, M, H) @ (n, H, W) @ (n, W, M) for each chunk of n masks
        row_weights @ unpack_bits(masks[image, idx], width=width).float() @ column_weights.mT
        for image, idx, row_weights, column_weights in chosen
    ]
    return torch.cat(cut).view(batch, count, resolution, resolution)


def _sampling_weights(spans: Tensor, length: int, resolution: int, *, aligned: bool) -> Tensor:
    """Return (N, M, L): the weight of each of L pixels in each of M cells along an axis.

    spans: (N, 2), where the boxes begin and end. Every step of the arithmetic is that of
    torchvision's RoIAlign with `sampling_ratio=-1`.
    """
    spans = at_least_float32(spans) - (0.5 if aligned else 0.0)
    low, extent = spans[:, :1], spans[:, 1:] - spans[:, :1]
    if not aligned:
        extent = extent.clamp(min=1)
    cell = extent / resolution  # (N, 1), length of a cell in pixels
    num_samples = cell.ceil().clamp(min=1)  # samples per cell, different for every box
    # T numbers: enough for the largest possible box. A box with fewer samples ignores the rest
    # (`taken`), so that all boxes share one shape.
    samples = torch.arange(math.ceil((length + 1) / resolution) + 1, device=spans.device)
    starts = low + torch.arange(resolution, device=spans.device) * cell  # (N, M)
    points = starts[..., None] + ((samples + 0.5) * (cell / num_samples))[:, None]  # (N, M, T)
    taken = (samples < num_samples) & (extent > 0)  # (N, T)
    # (N, M, T, 2) each: two pixels for every sample; a cell is the mean of its samples
    pixels, weights = bilinear_taps(points, torch.full_like(points, length, dtype=torch.int64))
    weights = weights * (taken / num_samples)[:, None, :, None]
    # added, because several samples of a cell may read the same pixel
    empty = weights.new_zeros(len(spans), resolution, length)
    return empty.scatter_add_(2, pixels.flatten(2), weights.flatten(2))


def paste_mask(
    cells: np.ndarray, box: np.ndarray, size: tuple[int, int], *, aligned: bool
) -> bytes:
    """Paste one predicted mask into its image and encode it; uses only as much memory as its box.

    A pixel belongs to the object if the bilinear interpolation of the cells at the pixel's centre
    is above 0.5. Outside the box the cells count as zero.

    Args:
        cells: (M, M) float32 probabilities over the box.
        box: (4,) xyxy in the image's pixels; may extend beyond the image.
        size: (height, width) of the image.
        aligned: use the exact box. False rounds the box to whole pixels and gives exactly the masks
            of torchvision's `paste_masks_in_image`.

    Returns:
        COCO's compressed run lengths.
    """
    left, columns = _pasting_weights(box[0::2], size[1], len(cells), aligned=aligned)
    top, rows = _pasting_weights(box[1::2], size[0], len(cells), aligned=aligned)
    # (h, M) @ (M, M) @ (M, w): the pixels of the box's window
    window = rows @ cells @ columns.T > THRESHOLD
    return encode_window(window, top=top, left=left, size=size)


def _pasting_weights(
    span: np.ndarray, length: int, resolution: int, *, aligned: bool
) -> tuple[int, np.ndarray]:
    """Return the first pixel that a span covers, and the weights (pixels, M) of the cells there."""
    begin, end = np.float32(span[0]), np.float32(span[1])
    if aligned:
        first, last = math.floor(begin), math.ceil(end)
        pixels = np.arange(max(first, 0), min(last, length))
        # Pixel centres in units of cells, where 0 is the centre of the first cell. The minimum
        # side avoids a division by 0.
        places = (pixels + 0.5 - begin) * (resolution / max(float(end - begin), 1e-6)) - 0.5
    else:
        # torchvision adds a border of one zero cell around the mask, enlarges the box by the same
        # factor and rounds it to whole pixels. int() rounds toward zero, as torchvision does.
        half = (end - begin) * np.float32(0.5) * np.float32((resolution + 2) / resolution)
        centre = (begin + end) * np.float32(0.5)
        first, last = int(centre - half), int(centre + half) + 1
        last = max(last, first + 1)
        pixels = np.arange(max(first, 0), min(last, length))
        places = (pixels - first + 0.5) * ((resolution + 2) / (last - first)) - 0.5
        # clamped as in F.interpolate; -1 turns indices with the border into indices of cells
        places = np.maximum(places, 0) - 1
    # Linear interpolation: the weight falls from 1 at a cell's centre to 0 at its neighbours'.
    weights = np.maximum(1 - np.abs(places[:, None] - np.arange(resolution)), 0)
    return int(pixels[0]) if len(pixels) else 0, weights.astype(np.float32)
