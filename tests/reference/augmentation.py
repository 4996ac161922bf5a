"""Reference large-scale jitter and copy-paste: whole images and masks, pixel by pixel.

S side of the square, N objects. Masks are drawn at the size of the whole resized image.
"""

from collections.abc import Sequence

import numpy as np

GREY = 128


def square(
    resized: np.ndarray,
    *,
    top: int,
    left: int,
    side: int,
    mirror_x: bool,
    mirror_y: bool,
    pad_value: int,
) -> np.ndarray:
    """Return the square (S, S, ...) of a resized image or mask: padded, then mirrored."""
    padded = np.full((side, side, *resized.shape[2:]), pad_value, resized.dtype)
    for y in range(side):
        for x in range(side):
            if top + y < resized.shape[0] and left + x < resized.shape[1]:
                padded[y, x] = resized[top + y, left + x]
    result = padded.copy()
    for y in range(side):
        for x in range(side):
            result[y, x] = padded[side - 1 - y if mirror_y else y, side - 1 - x if mirror_x else x]
    return result


def paste(
    first: np.ndarray,
    first_masks: Sequence[np.ndarray],
    second: np.ndarray,
    pasted_masks: Sequence[np.ndarray],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the image (S, S, 3) and the first image's masks with the pasted masks over them."""
    pixels, masks = first.copy(), [mask.copy() for mask in first_masks]
    for y in range(first.shape[0]):
        for x in range(first.shape[1]):
            if any(mask[y, x] for mask in pasted_masks):
                pixels[y, x] = second[y, x]
                for mask in masks:
                    mask[y, x] = False
    return pixels, masks


def box_around(mask: np.ndarray) -> list[int] | None:
    """Return x1, y1, x2, y2 (after the last pixel) of a mask (S, S) bool; None if it is empty."""
    pixels = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    if not pixels:
        return None
    columns, rows = zip(*pixels, strict=True)
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def fitted_box(box: Sequence[float], mask: np.ndarray) -> list[float] | None:
    """Return a box xyxy without what is farther than a pixel from a mask; None if it is empty."""
    around = box_around(mask)
    if around is None:
        return None
    fitted = [max(box[side], around[side] - 1) for side in (0, 1)]
    fitted += [min(box[side], around[side] + 1) for side in (2, 3)]
    return with_sides(fitted, around)


def with_sides(box: list[float], around: list[int]) -> list[float]:
    """Return a box with the sides of another one along an axis where it is empty."""
    for low, high in ((0, 2), (1, 3)):
        if box[high] - box[low] < 0.01:
            box[low], box[high] = around[low], around[high]
    return box


def covered_box(box: Sequence[float], mask: np.ndarray, rest: np.ndarray) -> list[float] | None:
    """Return a box xyxy after its mask lost pixels; None if nothing is left."""
    before, after = box_around(mask), box_around(rest)
    if before is None or after is None:
        return None
    moved = [side if old == new else new for side, old, new in zip(box, before, after, strict=True)]
    return with_sides(moved, after)


def clipped_box(
    box: Sequence[float],
    *,
    size: tuple[int, int],
    resized: tuple[int, int],
    top: int,
    left: int,
    side: int,
    mirror_x: bool,
    mirror_y: bool,
) -> list[float]:
    """Return a box xyxy of the file in the square, clipped to it; it may be empty."""
    x1, x2 = (min(max(x * resized[1] / size[1] - left, 0), side) for x in box[0::2])
    y1, y2 = (min(max(y * resized[0] / size[0] - top, 0), side) for y in box[1::2])
    if mirror_x:
        x1, x2 = side - x2, side - x1
    if mirror_y:
        y1, y2 = side - y2, side - y1
    return [x1, y1, x2, y2]
