"""COCO's run-length code of masks, as its compressed strings.

A mask is read column by column; its runs of zeros and ones alternate, zeros first. H, W pixels.
"""

import numpy as np
from pycocotools import mask as coco_mask


def encode_window(window: np.ndarray, *, top: int, left: int, size: tuple[int, int]) -> bytes:
    """Encode a mask that is zero outside a window of its picture; only the window is looked at.

    Args:
        window: (h, w) bool; h or w may be 0.
        top: row of the picture where the window begins.
        left: column where it begins.
        size: (height, width) of the picture, which holds the window.
    """
    height, width = size
    columns = np.zeros((window.shape[1], window.shape[0] + 2), np.int8)
    columns[:, 1:-1] = window.T
    steps = np.diff(columns, axis=1)  # (w, h + 1): 1 where a run begins, -1 behind its end
    origin = (left + np.arange(window.shape[1]))[:, None] * height + top
    places = origin + np.arange(window.shape[0] + 1)
    begins, ends = places[steps == 1], places[steps == -1]
    # a run that ends at the foot of a column goes on where one begins at the head of the next
    apart = np.append(begins[1:] != ends[:-1], True) if len(begins) else np.zeros(0, np.bool_)
    begins, ends = begins[np.roll(apart, 1)], ends[apart]
    bounds = np.concatenate([[0], np.column_stack([begins, ends]).ravel(), [height * width]])
    counts = np.diff(bounds)
    if counts[-1] == 0:
        counts = counts[:-1]
    code: bytes = coco_mask.frPyObjects({"counts": counts.tolist(), "size": list(size)}, *size)[
        "counts"
    ]
    return code


def decode(code: bytes, size: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) bool of a compressed string.

    Args:
        code: `counts` of COCO's compressed run lengths.
        size: (height, width) of the picture.

    Raises:
        ValueError: the runs do not fill the picture, or the string is none of COCO's.
    """
    counts = _counts_of(code)
    height, width = size
    total = sum(counts)
    if total != height * width or min(counts, default=0) < 0:
        raise ValueError(f"expected runs of {height} x {width} pixels, got {total}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def _counts_of(code: bytes) -> list[int]:
    """Read the numbers: five bits a character, low ones first; from the fourth on, differences."""
    counts: list[int] = []
    position = 0
    while position < len(code):
        value, shift, more = 0, 0, True
        while more:
            if position == len(code):
                raise ValueError("expected run lengths, got a string that was cut short")
            group = code[position] - 48  # "0"
            if not 0 <= group < 64:
                raise ValueError(f"expected run lengths, got the character {code[position]}")
            value |= (group & 31) << shift
            shift += 5
            position += 1
            more = bool(group & 32)
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts
