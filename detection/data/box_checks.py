"""Checks of the boxes of an annotation file, vectorised over all M boxes."""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from detection.ops.boxes import xywh_to_xyxy

MIN_SIDE = 0.01
"""Shortest side of a box, in pixels; float32 cannot tell much less apart at x = 60000."""
CLIP_TOLERANCE = 1e-3
"""Pixels that a box may reach outside without being counted: rounding of x + width in the file."""
FIT_TOLERANCE = 0.01
"""Fraction of the image's side that a fitting box may reach outside, in addition to one pixel."""
NOT_FINITE, NO_SIZE, OUTSIDE = "not finite", "no width or height", "outside its image"

_BLOCK = 1 << 14  # boxes per block, see check_boxes


@dataclass(frozen=True)
class CheckedBoxes:
    """Boxes after the checks.

    boxes: (M, 4) float32 xyxy, clipped to their images; undefined for bad boxes. clipped: (M,)
    bool, good boxes that reached outside. fits: (M,) bool, inside the image up to small mistakes of
    the annotator (`FIT_TOLERANCE`). fits_swapped: the same for the image with width and height
    swapped; undefined if all boxes fit. bad: (M,) bool by reason; a box has at most one reason.
    """

    boxes: np.ndarray
    clipped: np.ndarray
    fits: np.ndarray
    fits_swapped: np.ndarray
    bad: dict[str, np.ndarray]


def check_boxes(xywh: np.ndarray, sizes: np.ndarray) -> CheckedBoxes:
    """Check `xywh` (M, 4) float64 as in the file, on images of `sizes` (M, 2); M may be 0."""
    # In blocks: their temporary arrays stay in the CPU's cache, and add little to the peak memory.
    blocks = [
        _check_block(xywh[first : first + _BLOCK], sizes[first : first + _BLOCK])
        for first in range(0, max(1, len(xywh)), _BLOCK)
    ]
    fits = np.concatenate([block.fits for block in blocks])
    return CheckedBoxes(
        boxes=np.concatenate([block.boxes for block in blocks]),
        clipped=np.concatenate([block.clipped for block in blocks]),
        fits=fits,
        # sizes[:, ::-1] swaps height and width; computed only if needed
        fits_swapped=fits if fits.all() else lie_inside(xywh_to_xyxy(xywh), sizes[:, ::-1]),
        bad={
            reason: np.concatenate([block.bad[reason] for block in blocks])
            for reason in (NOT_FINITE, NO_SIZE, OUTSIDE)
        },
    )


def _check_block(xywh: np.ndarray, sizes: np.ndarray) -> CheckedBoxes:
    finite = _in_all_columns(np.isfinite(xywh))
    xywh = np.where(finite[:, None], xywh, 0.0)  # no NaN in the arithmetic below
    raw = xywh_to_xyxy(xywh)
    # upper limits per box: width, height, width, height
    boxes = np.clip(raw, 0, np.tile(sizes[:, ::-1], 2))
    excess = np.abs(raw - boxes)
    # `lie_inside` tolerates at least 1 pixel: skipped if no box of the block reaches out further
    fits = lie_inside(raw, sizes) if excess.max(initial=0) > 1 else np.ones(len(raw), np.bool_)
    sized = _in_all_columns(xywh[:, 2:] >= MIN_SIDE)
    # Outside means that clipping leaves nothing. Half of MIN_SIDE, because x + width - x may
    # round to less than width.
    inside = _in_all_columns(boxes[:, 2:] - boxes[:, :2] >= 0.5 * MIN_SIDE)
    good = finite & sized & inside
    return CheckedBoxes(
        boxes=boxes.astype(np.float32),
        fits=fits,
        fits_swapped=fits,  # a placeholder; check_boxes computes it for all blocks
        clipped=good & ~_in_all_columns(excess <= CLIP_TOLERANCE),
        # disjoint: each mask excludes the earlier reasons
        bad={
            NOT_FINITE: ~finite,
            NO_SIZE: finite & ~sized,
            OUTSIDE: finite & sized & ~inside,
        },
    )


def find_bad_areas(areas: np.ndarray) -> np.ndarray:
    """Return (M,) bool: areas (M,) that are negative, not finite or above float32's range."""
    bad: np.ndarray = ~((areas >= 0) & (areas <= np.finfo(np.float32).max))  # NaN fails both
    return bad


def lie_inside(raw: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return (M,) bool: xyxy boxes are inside images of `sizes` (M, 2), up to `FIT_TOLERANCE`."""
    # (M, 4): width, height, width, height
    sides = np.tile(sizes[:, ::-1], 2)
    slack = 1 + FIT_TOLERANCE * sides
    return _in_all_columns((raw >= -slack) & (raw <= sides + slack))


def _in_all_columns(mask: np.ndarray) -> np.ndarray:
    """Return `mask.all(axis=1)` of `mask` (M, columns), in a tenth of the time.

    numpy reduces short rows one by one, but combines whole columns with vector instructions.
    """
    columns: np.ndarray = functools.reduce(np.logical_and, mask.T)
    return columns


def describe_bad_box(xywh: list[float], size: tuple[int, int], reason: str) -> str:
    """Describe one bad box for an error message: the expected and the actual values."""
    if reason == NO_SIZE:
        name, side = ("width", xywh[2]) if xywh[2] < MIN_SIDE else ("height", xywh[3])
        return f"bbox {name}: expected at least {MIN_SIDE} pixels, got {side:g}"
    shown = [round(value, 2) for value in xywh]
    if reason == OUTSIDE:
        swapped = lie_inside(xywh_to_xyxy(np.array([xywh], np.float64)), np.array([size[::-1]]))[0]
        hint = " (which it would with width and height swapped)" if swapped else ""
        image = format_size(size)
        return f"bbox: expected a box that overlaps its image of {image}, got {shown}{hint}"
    return f"bbox: expected finite numbers, got {shown}"


def format_size(size: Any) -> str:
    """Format (height, width) for messages."""
    return f"{size[1]}x{size[0]} (width x height)"


@dataclass(frozen=True)
class SystematicFault:
    """Why the boxes of a file as a whole are not in COCO's format; `message` says how it shows."""

    kind: Literal["fractions", "corners", "swapped sides", "unknown"]
    message: str


def find_systematic_fault(xywh: np.ndarray, sizes: np.ndarray) -> SystematicFault | None:
    """Return what is wrong with the boxes as a whole, None if they may be in COCO's format.

    Finds systematic mistakes: fractions, corners in place of sizes, swapped sides. The limits are
    far above what a few bad boxes reach; those are found by `check_boxes`.

    Args:
        xywh: (M, 4) float64, unchanged from the file.
        sizes: (M, 2) height and width of their images.
    """
    finite = _in_all_columns(np.isfinite(xywh))
    if not finite.all():
        xywh, sizes = xywh[finite], sizes[finite]
    if len(xywh) < 5:  # too few for statistics
        return None
    with np.errstate(over="ignore"):
        return _systematic_fault(xywh, sizes)


def _systematic_fault(xywh: np.ndarray, sizes: np.ndarray) -> SystematicFault | None:
    x, y, width, height = xywh.T
    image_height, image_width = sizes.T
    if xywh.max() <= 1.0:
        return SystematicFault(
            "fractions",
            "every number in the boxes is at most 1; expected pixels, got fractions of the image",
        )
    # a tolerance of one pixel: some tools count pixels from 1
    outside = np.mean((x + width > image_width + 1) | (y + height > image_height + 1))
    if outside <= 0.3:
        return None
    # Corners read as sizes: x2 > x1 and y2 > y1, inside the image.
    as_corners = (width > x) & (height > y)
    as_corners &= (width <= image_width + 1) & (height <= image_height + 1)
    if np.mean(as_corners) > 0.99:
        return SystematicFault(
            "corners",
            f"{outside:.0%} of the boxes reach outside their images, but almost none do if"
            " read as [x1, y1, x2, y2]; expected COCO's [x, y, width, height]",
        )
    raw = xywh_to_xyxy(xywh)
    if np.mean(lie_inside(raw, sizes)) < 0.7 and np.mean(lie_inside(raw, sizes[:, ::-1])) > 0.99:
        return SystematicFault(
            "swapped sides",
            f"{outside:.0%} of the boxes reach outside their images, and almost none would with"
            " `width` and `height` of the images swapped; expected the size after EXIF rotation,"
            " got the size before it?",
        )
    # no known mistake explains it; so many boxes outside are still no accident
    if outside > 0.5 and len(x) >= 20:
        return SystematicFault(
            "unknown",
            f"{outside:.0%} of the boxes reach outside their images; expected [x, y, width, height]"
            " in pixels of images as large as their entries say",
        )
    return None
