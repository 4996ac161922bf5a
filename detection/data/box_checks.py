"""What can be wrong with the boxes of an annotation file. M boxes, all checked at once."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_SIDE = 0.01
"""Shortest side of a box, in pixels; float32 cannot tell much less apart at x = 60000."""
CLIP_TOLERANCE = 1e-3
"""Pixels that a box may stick out uncounted: rounding of x + width in the file."""
FIT_TOLERANCE = 0.01
"""Share of an image's side, and one pixel more, by which a box that fits may stick out."""
NOT_FINITE, NO_SIZE, OUTSIDE = "not finite", "no width or height", "outside its image"

_BLOCK = 1 << 14  # boxes that are checked at once


@dataclass(frozen=True)
class CheckedBoxes:
    """Boxes after the checks.

    boxes: (M, 4) float32 xyxy, cut to their images; of no meaning where bad. clipped: (M,) bool,
    good boxes that stuck out. fits: (M,) bool, inside its image but for the annotator's slips.
    fits_turned: the same in an image whose width and height are swapped; of no meaning where all
    fit. bad: for each reason (M,) bool; a box has one reason at most.
    """

    boxes: np.ndarray
    clipped: np.ndarray
    fits: np.ndarray
    fits_turned: np.ndarray
    bad: dict[str, np.ndarray]


def check_boxes(xywh: np.ndarray, sizes: np.ndarray) -> CheckedBoxes:
    """Check `xywh` (M, 4) float64 as in the file, on images of `sizes` (M, 2); M may be 0."""
    # in blocks, whose temporary arrays stay in the processor's cache and leave no memory behind
    blocks = [
        _check_block(xywh[first : first + _BLOCK], sizes[first : first + _BLOCK])
        for first in range(0, max(1, len(xywh)), _BLOCK)
    ]
    fits = np.concatenate([block.fits for block in blocks])
    return CheckedBoxes(
        boxes=np.concatenate([block.boxes for block in blocks]),
        clipped=np.concatenate([block.clipped for block in blocks]),
        fits=fits,
        fits_turned=fits if fits.all() else fit(corners_of(xywh), sizes[:, ::-1]),
        bad={
            reason: np.concatenate([block.bad[reason] for block in blocks])
            for reason in (NOT_FINITE, NO_SIZE, OUTSIDE)
        },
    )


def _check_block(xywh: np.ndarray, sizes: np.ndarray) -> CheckedBoxes:
    finite = _in_all_columns(np.isfinite(xywh))
    xywh = np.where(finite[:, None], xywh, 0.0)
    raw = corners_of(xywh)
    boxes = np.clip(raw, 0, np.tile(sizes[:, ::-1], 2))
    excess = np.abs(raw - boxes)
    fits = fit(raw, sizes) if excess.max(initial=0) > 1 else np.ones(len(raw), np.bool_)
    sized = _in_all_columns(xywh[:, 2:] >= MIN_SIDE)
    inside = _in_all_columns(boxes[:, 2:] - boxes[:, :2] >= 0.5 * MIN_SIDE)
    good = finite & sized & inside
    return CheckedBoxes(
        boxes=boxes.astype(np.float32),
        fits=fits,
        fits_turned=fits,
        clipped=good & ~_in_all_columns(excess <= CLIP_TOLERANCE),
        bad={
            NOT_FINITE: ~finite,
            NO_SIZE: finite & ~sized,
            OUTSIDE: finite & sized & ~inside,
        },
    )


def corners_of(xywh: np.ndarray) -> np.ndarray:
    """Return boxes (M, 4) xyxy from xywh as in COCO's files."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told elsewhere
        return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def fit(raw: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return (M,) bool: boxes xyxy are inside images of `sizes` (M, 2), up to `FIT_TOLERANCE`."""
    sides = np.tile(sizes[:, ::-1], 2)
    slack = 1 + FIT_TOLERANCE * sides
    return _in_all_columns((raw >= -slack) & (raw <= sides + slack))


def _in_all_columns(mask: np.ndarray) -> np.ndarray:
    """Return (M,) bool of `mask` (M, columns): `mask.all(axis=1)` is ten times as slow."""
    columns: np.ndarray = functools.reduce(np.logical_and, mask.T)
    return columns


def describe_bad_box(xywh: list[float], size: tuple[int, int], reason: str) -> str:
    """Return expected and got for one bad box."""
    if reason == NO_SIZE:
        name, side = ("width", xywh[2]) if xywh[2] < MIN_SIDE else ("height", xywh[3])
        return f"bbox {name}: expected at least {MIN_SIDE} pixels, got {side:g}"
    shown = [round(value, 2) for value in xywh]
    if reason == OUTSIDE:
        turned = fit(corners_of(np.array([xywh], np.float64)), np.array([size[::-1]]))[0]
        hint = " (which it would with width and height swapped)" if turned else ""
        return f"bbox: expected a box that overlaps its image of {shape(size)}, got {shown}{hint}"
    return f"bbox: expected finite numbers, got {shown}"


def shape(size: Any) -> str:
    """Return (height, width) as people read it."""
    return f"{size[1]}x{size[0]} (width x height)"


def doubt_about_all(xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return why the boxes as a whole cannot be COCO's, None where they can.

    A handful of odd boxes is left to `check_boxes`: the limits ask for more than chance gives.

    Args:
        xywh: (M, 4) float64 as in the file.
        sizes: (M, 2) height and width of their images.
    """
    finite = _in_all_columns(np.isfinite(xywh))
    if not finite.all():
        xywh, sizes = xywh[finite], sizes[finite]
    if len(xywh) < 5:
        return None
    with np.errstate(over="ignore"):
        return _doubt(xywh, sizes)


def _doubt(xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    x, y, width, height = xywh.T
    image_height, image_width = sizes.T
    if xywh.max() <= 1.0:
        return "every number in the boxes is at most 1; expected pixels, got fractions of the image"
    outside = np.mean((x + width > image_width + 1) | (y + height > image_height + 1))
    if outside <= 0.3:
        return None
    as_corners = (width > x) & (height > y)
    as_corners &= (width <= image_width + 1) & (height <= image_height + 1)
    if np.mean(as_corners) > 0.99:
        return (
            f"{outside:.0%} of the boxes reach outside their images, and none would as"
            " [x1, y1, x2, y2]; expected COCO's [x, y, width, height]"
        )
    raw = corners_of(xywh)
    if np.mean(fit(raw, sizes)) < 0.7 and np.mean(fit(raw, sizes[:, ::-1])) > 0.99:
        return (
            f"{outside:.0%} of the boxes reach outside their images, and hardly one would with"
            " `width` and `height` of the images swapped; expected the size after EXIF rotation,"
            " got the one before it?"
        )
    if outside > 0.5 and len(x) >= 20:
        return (
            f"{outside:.0%} of the boxes reach outside their images; expected [x, y, width, height]"
            " in pixels of images as large as their entries say"
        )
    return None
