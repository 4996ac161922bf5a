"""Resizing of images inside an exported graph, with OpenCV's arithmetic.

B images of H x W pixels, H' x W' resized and padded, T taps: source pixels of a result pixel along
one axis.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_COEFFICIENT = 2048
"""OpenCV rounds the weights of an enlarged 8-bit image to 11 bits."""
_LEAST_OVERLAP = 1e-3
"""OpenCV's INTER_AREA skips a pixel of which a smaller part is covered."""


class Taps(NamedTuple):
    """Source pixels of each result pixel along an axis.

    idxs: (L, T) int64. weights: (L, T) float64.
    """

    idxs: Tensor
    weights: Tensor


def resized_size(
    height: Tensor, width: Tensor, *, short_side: int, max_side: float
) -> tuple[Tensor, Tensor]:
    """Return the height and width that `transforms.resized_size` gives, as int64 scalars.

    Args:
        height: scalar float64.
        width: scalar float64.
        short_side: as for `transforms.resized_size`.
        max_side: as for `transforms.resized_size`.
    """
    shorter, longer = torch.minimum(height, width), torch.maximum(height, width)
    scale = torch.minimum(short_side / shorter, max_side / longer)
    # torch rounds halves to even, as Python does
    sides = [(side * scale).round().clamp(min=1).to(torch.int64) for side in (height, width)]
    return sides[0], sides[1]


def resize_and_pad(
    images: Tensor, size: tuple[Tensor, Tensor], padded: tuple[int, int], num_taps: int
) -> Tensor:
    """Return images resized as by `images.resize_pixels`, and padded right and bottom.

    The result is that of OpenCV to the last bit where images grow. Where they shrink, a few pixels
    in 100,000 differ by 1: OpenCV adds in float32.

    Args:
        images: (B, H, W, 3) uint8.
        size: height and width of the resized images, int64 scalars.
        padded: H' and W', at least `size`. Padding repeats the last row and column.
        num_taps: T, from `count_taps`.

    Returns:
        (B, 3, H', W') float32 with whole numbers from 0 to 255.
    """
    height, width = (torch.scalar_tensor(side, dtype=torch.float64) for side in images.shape[1:3])
    new_height, new_width = (side.to(torch.float64) for side in size)
    grows = (new_height >= height) & (new_width >= width)
    is_half = (height == 2 * new_height) & (width == 2 * new_width)
    rows = _taps(height, new_height, padded[0], num_taps, grows=grows, clamps_weights=False)
    columns = _taps(width, new_width, padded[1], num_taps, grows=grows, clamps_weights=True)

    # Along x, then along y, as OpenCV does. (B, H, W, 3) -> (B, H, W', T, 3) -> (B, H, W', 3).
    taken = images.index_select(2, columns.idxs.flatten()).unflatten(2, columns.idxs.shape)
    along_x = (taken.float() * columns.weights[..., None].float()).sum(dim=3)
    # The weights of enlarged images are whole numbers here, and OpenCV drops their last bits.
    along_x = torch.where(grows, (along_x / 16).floor(), along_x)
    taken = along_x.index_select(1, rows.idxs.flatten()).unflatten(1, rows.idxs.shape)
    parts = taken.double() * rows.weights[:, :, None, None]  # (B, H', T, W', 3)
    parts = torch.where(grows, (parts / 65536).floor(), parts)
    resized = parts.float().sum(dim=2)
    enlarged = ((resized + 2) / 4).floor()
    # at half the size OpenCV rounds halves up, otherwise to even
    reduced = torch.where(is_half, (resized + 0.5).floor(), resized.round())
    pixels = torch.where(grows, enlarged, reduced).clamp(0, 255)
    return pixels.permute(0, 3, 1, 2)


def count_taps(images: Tensor, size: tuple[Tensor, Tensor]) -> Tensor:
    """Return T, an int64 scalar: 2 for images that grow, otherwise enough for the area."""
    taps = [
        (torch.scalar_tensor(side, dtype=torch.float64) / new_side).ceil() + 1
        for side, new_side in zip(images.shape[1:3], size, strict=True)
    ]
    return torch.maximum(taps[0], taps[1]).to(torch.int64)


def _taps(
    length: Tensor,
    new_length: Tensor,
    padded_length: int,
    num_taps: int,
    *,
    grows: Tensor,
    clamps_weights: bool,
) -> Taps:
    """Return the taps along one axis.

    Args:
        length: source pixels, a float64 scalar.
        new_length: result pixels, a float64 scalar.
        padded_length: L; result pixels beyond `new_length` repeat the last one.
        num_taps: T.
        grows: scalar bool, the image becomes larger: INTER_LINEAR, otherwise INTER_AREA.
        clamps_weights: beyond the first and last centre the nearest pixel alone counts; False: both
            taps are that pixel.
    """
    scale = length / new_length
    device = length.device
    places = torch.arange(padded_length, device=device).double().minimum(new_length - 1)[:, None]
    taps = torch.arange(num_taps, device=device).double()

    # INTER_LINEAR: OpenCV computes the centres in float64 and keeps them in float32
    centres = ((places + 0.5) * scale - 0.5).float()
    first = centres.floor()
    fraction = (centres - first).double()
    first = first.double()
    if clamps_weights:
        inside = (first >= 0) & (first < length - 1)
        fraction = torch.where(inside, fraction, 0.0)
    # the first two taps are the neighbours, the others have no weight
    near = torch.where(taps == 0, 1 - fraction, torch.where(taps == 1, fraction, 0.0))
    linear_weights = (near * _COEFFICIENT).round()

    # INTER_AREA: the share of each source pixel in the result pixel's area
    start = places * scale
    end = start + scale
    area_first = start.floor()
    pixels = area_first + taps
    covered = torch.minimum(end, pixels + 1) - torch.maximum(start, pixels)
    covered = torch.where(covered > _LEAST_OVERLAP, covered, 0.0)
    area_weights = (covered / torch.minimum(scale, length - start)).float().double()

    idxs = torch.where(grows, first + taps, pixels)
    idxs = idxs.clamp(min=0).minimum(length - 1).to(torch.int64)
    return Taps(idxs, torch.where(grows, linear_weights, area_weights))
