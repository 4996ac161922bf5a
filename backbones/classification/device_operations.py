"""Random operations of TrivialAugment and RandAugment on a batch of images on the device.

They are those of `operations`, which changes one image on the CPU. Nothing here is random: the
caller chooses each image's operation and value on the host. Images with operations of one kind are
changed together. There is no loop over images on the device, and the host never waits for it.
B images of a batch, N images with operations of one kind, C = 3 colours, H x W pixels.

All operations repeat the arithmetic of the CPU's, rounding for rounding: of OpenCV 5 on a processor
with fused multiply-add (x86 with AVX2). The results are equal there at sides 32, 128, 176 and 224.
OpenCV rounds differently in the last columns of a width that does not fill its vector registers:

- shears and rotations: at most 37 of 0.8 million values of noise and smooth images differed, by 1,
  at side 33; 49 of 7.9 million at side 177;
- sharpness: 2 of 0.8 million values differed, by 1, at side 33; 3 of 7.9 million at side 177.

Without fused multiply-add, shears, rotations, sharpness and saturation may differ by 1: NumPy's
unfused float32 gave 0.1 % other values for saturation, 0.01 % for sharpness.

OpenCV 4.13 rounds the source coordinates of shears and rotations to 1/32 pixel. At side 176, 44 %
of noise's values differed, by at most 7, and 4.5 % of a smooth image's, 0.02 % by more than 2.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from backbones.classification.operations import (
    OPERATIONS,
    Operation,
    affine_matrix,
    color_table,
    sharpness_kernel,
)
from engine.device_copies import copy_of_array

_MAX_IMAGES = 64
"""Images that are changed together. It limits memory: an affine operation takes 42 bytes per value,
250 MB for 64 images of 176 x 176 pixels; the other operations take less than half."""


def apply_operations(pixels: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Return the images after one operation each.

    Args:
        pixels: (B, 3, H, W) uint8 RGB, not changed; B may be 0.
        operations: the operation of each image.

    Returns:
        (B, 3, H, W) uint8.

    Raises:
        ValueError: a name is unknown, or there is another number of operations than of images.
    """
    if len(operations) != len(pixels):
        raise ValueError(f"expected {len(pixels)} operations, one per image, got {len(operations)}")
    unknown = {name for name, _ in operations} - set(OPERATIONS)
    if unknown:
        raise ValueError(f"expected operations of {list(OPERATIONS)}, got {sorted(unknown)}")
    places: dict[_Batched, list[int]] = {}
    for place, (name, _) in enumerate(operations):
        if name != "identity":
            places.setdefault(_BATCHED[name], []).append(place)
    changed = pixels.clone()
    for apply, group in places.items():
        for start in range(0, len(group), _MAX_IMAGES):
            part = group[start : start + _MAX_IMAGES]
            index = copy_of_array(np.array(part), pixels.device)
            result = apply(pixels.index_select(0, index), [operations[place] for place in part])
            changed.index_copy_(0, index, result)
    return changed


def _warp(images: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Shear, translate or rotate: bilinear, black outside the image."""
    height, width = images.shape[2:]
    shape = (height, width, 3)
    matrices = [
        cv2.invertAffineTransform(affine_matrix(name, value, shape)) for name, value in operations
    ]
    whole, share = _source_places(copy_of_array(np.stack(matrices), images.device), height, width)
    x_share, y_share = share[:, :, None].unbind(dim=1)  # (N, 1, H, W)
    left, top = whole.unbind(dim=1)
    # A border of 1 black pixel stands for all that is outside: places farther away are moved to it.
    lefts, rights = (_border_place(place, width) for place in (left, left + 1))
    tops, bottoms = (_border_place(place, height) * (width + 2) for place in (top, top + 1))
    bordered = torch.nn.functional.pad(images, (1, 1, 1, 1)).flatten(2)

    def row_between(starts: Tensor) -> Tensor:
        """Return (N, 3, H, W) float32: the values of one source row, between its two columns."""
        first, second = (_at(bordered, starts + place).float() for place in (lefts, rights))
        return _multiply_add(x_share, second.sub_(first), first)

    above, below = row_between(tops), row_between(bottoms)
    return _to_uint8(_multiply_add(y_share, below.sub_(above), above))


def _source_places(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the place (x, y) in the source for each pixel of the result.

    matrices: (N, 2, 3) float64, from the (x, y, 1) of a pixel of the result to its source's (x, y).

    Returns:
        the place, rounded down, and the rest in [0, 1), both (N, 2, H, W) float32.
    """
    across, down, shift = matrices.float().split(1, dim=2)
    columns = torch.arange(width, device=matrices.device).expand(height, width)
    rows = torch.arange(height, device=matrices.device)
    # OpenCV rounds the part of the row twice, and adds the part of the column with one rounding
    places = _multiply_add(across[..., None], columns, (down * rows + shift)[..., None])
    whole = places.floor()
    return whole, places - whole


def _border_place(place: Tensor, size: int) -> Tensor:
    """Return the int64 place in a row or column with a border of 1 at both ends."""
    return place.clamp(-1, size).long() + 1


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Return (N, 3, H, W): for each pixel the values (N, 3, cells) at its index (N, H, W)."""
    flat = index.flatten(1)[:, None].expand(-1, values.shape[1], -1)
    return values.gather(2, flat).view(*values.shape[:2], *index.shape[1:])


def _fixed_tables(images: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Change brightness, posterize or solarize: the table depends on the value alone."""
    tables = np.stack([color_table(name, value) for name, value in operations])
    return _look_up(images, copy_of_array(tables, images.device)[:, None])


def _contrast(images: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Move all colours away from the image's mean grey, or towards it."""
    height, width = images.shape[2:]
    factors = _factors(images, operations)  # (N, 1) float64
    sums = _grey(images).sum(dim=(1, 2))[:, None].double()
    means = sums / torch.full_like(sums, height * width)  # torch would multiply by 1 / a number
    ramp = torch.arange(256, device=images.device)
    tables = factors.float() * ramp + (means * (1 - factors)).float()
    # factor 0 is the mean, rounded; all other values are truncated
    tables = torch.where(factors == 0, (means + 0.5).float(), tables)
    return _look_up(images, tables.clamp(0, 255).to(torch.uint8)[:, None])


def _saturation(images: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Move each pixel's colours away from its grey, or towards it."""
    factors = _factors(images, operations)[:, :, None, None]
    grey = _grey(images)[:, None] * (1 - factors).float()
    return _to_uint8(_multiply_add(factors.float(), images, grey))


def _sharpness(images: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Filter with `sharpness_kernel`; the image is mirrored about its outer pixels."""
    height, width = images.shape[2:]
    kernels = np.stack([sharpness_kernel(value) for _, value in operations]).astype(np.float32)
    weights = copy_of_array(kernels, images.device)[..., None, None, None]  # (N, 3, 3, 1, 1, 1)
    mirrored = images.index_select(2, _mirrored_places(height, images.device))
    mirrored = mirrored.index_select(3, _mirrored_places(width, images.device))
    total = torch.zeros((), device=images.device)
    for row in range(3):  # in OpenCV's order
        for column in range(3):
            moved = mirrored[..., row : row + height, column : column + width]
            total = _multiply_add(weights[:, row, column], moved, total)
    return _to_uint8(total)


def _mirrored_places(size: int, device: torch.device) -> Tensor:
    """Return (size + 2,) int64: 1, 0, 1, ... size - 1, size - 2; three times 0 for a size of 1."""
    places = torch.arange(-1, size + 1, device=device).abs()
    return (size - 1 - (size - 1 - places).abs()).clamp(min=0)


def _autocontrast(images: Tensor, _: Sequence[Operation]) -> Tensor:
    """Stretch each channel to 0..255.

    Its highest value is looked for below 255, as albumentations does. A channel with at most one
    value below 255 stays as it is.
    """
    channels = images.flatten(2)
    lowest = channels.amin(dim=2, keepdim=True).double()
    highest = channels.masked_fill(channels == 255, 0).amax(dim=2, keepdim=True).double()
    ramp = torch.arange(256, device=images.device)
    # the minimum of 1 prevents a division by 0 where the table is not used
    scale = torch.full_like(lowest, 255) / (highest - lowest).clamp(min=1)
    tables = ((ramp - lowest) * scale).round().clamp(0, 255)
    return _look_up(images, torch.where(highest > lowest, tables, ramp).to(torch.uint8))


def _equalize(images: Tensor, _: Sequence[Operation]) -> Tensor:
    """Equalize each channel's histogram; a channel of nearly one value stays as it is."""
    values = images.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], 256)
    counts.scatter_add_(2, values, torch.ones_like(values[:1, :1, :1]).expand_as(values))
    brightest = values.amax(dim=2, keepdim=True)
    step = (values.shape[2] - counts.gather(2, brightest)) // 255  # (N, 3, 1)
    tables = ((counts.cumsum(dim=2) + step // 2) // step.clamp(min=1)).clamp(max=255)
    ramp = torch.arange(256, device=images.device)
    return _look_up(images, torch.where(step > 0, tables, ramp).to(torch.uint8))


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each value by its entry in the (N, 1 or 3, 256) uint8 table of its image."""
    index = images.flatten(2).long()
    return tables.expand(-1, images.shape[1], -1).gather(2, index).view_as(images)


def _grey(images: Tensor) -> Tensor:
    """Return the (N, H, W) int32 grey of images, as OpenCV rounds it."""
    red, green, blue = images.int().unbind(dim=1)
    # OpenCV's weights, in units of 2**-15
    return (9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15


def _factors(images: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Return (N, 1) float64: 1 is the image unchanged."""
    return copy_of_array(np.array([[1.0 + value] for _, value in operations]), images.device)


def _multiply_add(factor: Tensor, values: Tensor, addend: Tensor) -> Tensor:
    """Return factor * values + addend in float32, rounded once: a fused multiply-add.

    factor: float32; factor * values has the shape of the result.
    values: uint8, int64 up to 2**24 or float32: the product has at most 48 bits, so it is exact.
    """
    return (factor.double() * values).add_(addend).float()


def _to_uint8(values: Tensor) -> Tensor:
    """Round to the nearest value in 0..255, halves to even."""
    return values.round().clamp(0, 255).to(torch.uint8)


_Batched = Callable[[Tensor, Sequence[Operation]], Tensor]

_BATCHED: dict[str, _Batched] = {
    "shear_x": _warp,
    "shear_y": _warp,
    "translate_x": _warp,
    "translate_y": _warp,
    "rotate": _warp,
    "brightness": _fixed_tables,
    "saturation": _saturation,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _fixed_tables,
    "solarize": _fixed_tables,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""For each operation but the identity, the function for (N, 3, H, W) images that have it."""
