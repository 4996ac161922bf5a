"""Resizing of images inside an exported graph, with OpenCV's arithmetic.

B images of H x W pixels, H' x W' pixels of the result, T taps: the source pixels of a result pixel
along one axis.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from detection.export.program import ImageSize

Sides = tuple[Tensor, Tensor]
"""Height and width of images as scalars: float64, int64 if they are of resized images."""
Sizing = Callable[[Sides], Sides]
"""Returns height and width of the resized images for those of the images."""
_COEFFICIENT = 2048
"""OpenCV rounds the weights of an enlarged 8-bit image to 11 bits."""
_LEAST_OVERLAP = 1e-3
"""OpenCV's INTER_AREA skips a pixel of which a smaller part is covered."""


class Taps(NamedTuple):
    """Source pixels of each result pixel along an axis.

    idxs: (T, L) int64. weights: (T, L) float64.
    """

    idxs: Tensor
    weights: Tensor


def number(scalar: Tensor, *, least: int = 1) -> int:
    """Return an int64 scalar as a number of at least `least`; a symbol in an exported graph."""
    value = cast(int, scalar.item())
    torch._check(value >= least)
    return value


def sides_of(images: Tensor) -> Sides:
    """Return height and width of images (B, H, W, 3) as float64 scalars."""
    height, width = (
        torch.scalar_tensor(side, dtype=torch.float64, device=images.device)
        for side in images.shape[1:3]
    )
    return height, width


def short_side_sizing(short_side: int) -> Sizing:
    """Return `transforms.size_for_short_side` for scalars."""

    def resized(sides: Sides) -> Sides:
        # torch rounds halves to even, as Python does
        height, width = (
            (side * short_side / torch.minimum(*sides)).round().to(torch.int64) for side in sides
        )
        return height, width

    return resized


class WholeResize:
    """Resizes whole images and pads them right and bottom.

    Args:
        sizing: the size of the resized images.
        divisor: multiple to which height and width are padded.
        image_size: (height, width) of all images; None: they have any size, so that the shape of
            the result is a symbol in an exported graph.
    """

    def __init__(
        self, sizing: Sizing, *, divisor: int = 1, image_size: ImageSize | None = None
    ) -> None:
        self._sizing, self._divisor = sizing, divisor
        self._fixed = None
        if image_size is not None:
            height, width = (torch.tensor(side, dtype=torch.float64) for side in image_size)
            self._fixed = self._shape((height, width))

    def __call__(self, images: Tensor) -> tuple[Tensor, Sides]:
        """Return the result (B, 3, H', W') of `resize`, and the size before padding.

        Args:
            images: (B, H, W, 3) uint8.
        """
        size, (height, width), num_taps = self._fixed or self._shape(sides_of(images))
        rows, columns = (torch.arange(length, device=images.device) for length in (height, width))
        return resize(images, size, rows, columns, num_taps), size

    def _shape(self, sides: Sides) -> tuple[Sides, tuple[int, int], int]:
        """Return the size before padding, H' and W', and the number of taps."""
        size = self._sizing(sides)
        height, width = (
            number((side + self._divisor - 1) // self._divisor) * self._divisor for side in size
        )
        return size, (height, width), count_taps(sides, size)


def resize(images: Tensor, size: Sides, rows: Tensor, columns: Tensor, num_taps: int) -> Tensor:
    """Return a window of images that are resized as by `images.resize_pixels`.

    The result is OpenCV's to the last bit. Only where images shrink by a factor of 15 or more may a
    few pixels differ by 1, because longer sums are added in another order.

    Args:
        images: (B, H, W, 3) uint8.
        size: height and width of the resized images, int64 scalars.
        rows: (H',) int64, rows of the resized images; those beyond the last repeat it.
        columns: (W',) int64, as `rows`.
        num_taps: T, from `count_taps`.

    Returns:
        (B, 3, H', W') float32 with whole numbers from 0 to 255.
    """
    height, width = sides_of(images)
    new_height, new_width = (side.to(torch.float64) for side in size)
    grows = (new_height >= height) & (new_width >= width)
    is_half = (height == 2 * new_height) & (width == 2 * new_width)
    of_rows = _taps(rows, height, new_height, num_taps, grows=grows)
    of_columns = _taps(columns, width, new_width, num_taps, grows=grows, one_at_borders=True)

    # Along x, then along y, as OpenCV does. With the taps first, torch and onnxruntime add them in
    # order, as OpenCV does; the order decides how sums next to a half are rounded.
    # (B, H, W, 3) -> (T, B, H, W', 3) -> (B, H, W', 3)
    taken = _taken(images, of_columns.idxs, dim=2).float()
    along_x = (taken * of_columns.weights[:, None, None, :, None].float()).sum(dim=0)
    # The weights of enlarged images are whole numbers here, and OpenCV drops their last bits.
    along_x = torch.where(grows, (along_x / 16).floor(), along_x)
    # (B, H, W', 3) -> (T, B, H', W', 3) -> (B, H', W', 3)
    taken = _taken(along_x, of_rows.idxs, dim=1).double()
    parts = taken * of_rows.weights[:, None, :, None, None]
    parts = torch.where(grows, (parts / 65536).floor(), parts)
    resized = parts.float().sum(dim=0)
    enlarged = ((resized + 2) / 4).floor()
    # at half the size OpenCV rounds halves up, otherwise to even
    reduced = torch.where(is_half, (resized + 0.5).floor(), resized.round())
    pixels = torch.where(grows, enlarged, reduced).clamp(0, 255)
    return pixels.permute(0, 3, 1, 2)


def _taken(images: Tensor, idxs: Tensor, *, dim: int) -> Tensor:
    """Return the pixels at `idxs` (T, L) along a dimension of images, with T as first dimension."""
    taken: Tensor = images.index_select(dim, idxs.flatten()).unflatten(dim, idxs.shape)
    return taken.movedim(dim, 0)


def count_taps(sides: Sides, size: Sides) -> int:
    """Return T: 2 for images that grow, otherwise enough for the area.

    Args:
        sides: height and width of the images, float64 scalars.
        size: those of the resized images, int64 scalars.
    """
    height, width = (
        (side / new_side).ceil() + 1 for side, new_side in zip(sides, size, strict=True)
    )
    return number(torch.maximum(height, width).to(torch.int64), least=2)


def _taps(
    places: Tensor,
    length: Tensor,
    new_length: Tensor,
    num_taps: int,
    *,
    grows: Tensor,
    one_at_borders: bool = False,
) -> Taps:
    """Return the source pixels of result pixels along one axis.

    Args:
        places: (L,) int64, the result pixels.
        length: number of source pixels, a float64 scalar.
        new_length: number of result pixels, a float64 scalar.
        num_taps: T.
        grows: scalar bool, the image becomes larger: INTER_LINEAR, otherwise INTER_AREA.
        one_at_borders: INTER_LINEAR: beyond the first and the last centre only one tap has a
            weight, as for columns. False: both are the nearest pixel, as for rows.
    """
    scale = length / new_length
    places = places.double().minimum(new_length - 1)
    taps = torch.arange(num_taps, device=places.device).double()[:, None]

    # INTER_LINEAR: OpenCV computes the centres in float64 and keeps them in float32
    centres = ((places + 0.5) * scale - 0.5).float()
    first = centres.floor()
    fraction = (centres - first).double()
    first = first.double()
    if one_at_borders:
        fraction = torch.where((first >= 0) & (first < length - 1), fraction, 0.0)
    # the first two taps are the neighbours, the others have no weight
    near = torch.where(taps == 0, 1 - fraction, torch.where(taps == 1, fraction, 0.0))
    linear_weights = (near * _COEFFICIENT).round()

    # INTER_AREA: the share of each source pixel in the result pixel's area
    start = places * scale
    pixels = start.floor() + taps
    covered = torch.minimum(start + scale, pixels + 1) - torch.maximum(start, pixels)
    covered = torch.where(covered > _LEAST_OVERLAP, covered, 0.0)
    area_weights = (covered / torch.minimum(scale, length - start)).float().double()

    idxs = torch.where(grows, first + taps, pixels)
    idxs = idxs.clamp(min=0).minimum(length - 1).to(torch.int64)
    return Taps(idxs, torch.where(grows, linear_weights, area_weights))
