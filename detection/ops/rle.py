"""COCO's run-length code of masks, as its compressed strings.

A mask is read column by column; its runs of zeros and ones alternate, zeros first. H, W pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode_window(window: np.ndarray, *, top: int, left: int, size: tuple[int, int]) -> bytes:
    """Encode a mask that is zero outside a window of its image; only the window is looked at.

    Args:
        window: (h, w) bool; h or w may be 0.
        top: row of the image where the window begins.
        left: column where it begins.
        size: (height, width) of the image, which holds the window.
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
        size: (height, width) of the image.

    Raises:
        ValueError: the runs do not fill the image, or the string is none of COCO's.
    """
    counts = _counts_of(code, size)
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[1], size[0]).T


def code_of(value: Any, size: Sequence[int]) -> bytes:
    """Return the compressed string of an RLE object, whose runs are sure to fill its image.

    Args:
        value: of a COCO file: {"size": [height, width], "counts": a compressed string or runs}.
        size: (height, width) of its image.

    Raises:
        ValueError: it is no such object, or not one of such an image.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected an RLE, got {value!r:.60}")
    if value.get("size") != list(size):
        raise ValueError(f"expected size {list(size)}, got {value.get('size')!r:.60}")
    counts: Any = value.get("counts")
    try:
        if isinstance(counts, list):
            if not all(type(count) is int for count in counts):
                raise TypeError("numpy would read text and fractions as numbers")
            counts = coco_mask.frPyObjects(value, *size)["counts"].decode()
        code = str.encode(counts)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"expected counts of an RLE, got {counts!r:.60}") from error
    _counts_of(code, size)
    return code


def _counts_of(code: bytes, size: Sequence[int]) -> np.ndarray:
    """Read the runs: five bits a character, low ones first; from the fourth on, differences."""
    groups = np.frombuffer(code, np.uint8).astype(np.int64) - 48  # "0"
    strange = (groups < 0) | (groups > 63)
    if strange.any():
        raise ValueError(f"expected run lengths, got the character {code[strange.argmax()]}")
    is_last = groups & 32 == 0
    if not is_last[-1:].all():
        raise ValueError("expected run lengths, got a string that was cut short")
    lasts = np.flatnonzero(is_last)
    starts = np.append(0, lasts + 1)[:-1]
    lengths = lasts + 1 - starts
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    values = (groups & 31) << shifts
    counts: np.ndarray = np.add.reduceat(values, starts) if len(starts) else values
    counts -= (groups[lasts] & 16) >> 4 << 5 * lengths
    for chain in (counts[1::2], counts[2::2]):
        chain[:] = np.cumsum(chain)
    if counts.sum() != size[0] * size[1] or counts.min(initial=0) < 0 or lengths.max(initial=0) > 7:
        raise ValueError(f"expected runs of {size[0]} x {size[1]} pixels, got {counts.sum()}")
    return counts
