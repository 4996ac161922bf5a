"""COCO's run-length encoding (RLE) of masks: encode, decode and check its compressed strings.

A mask is read column by column; runs of zeros and ones alternate, zeros first. H, W: height and
width in pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode_window(window: np.ndarray, *, top: int, left: int, size: tuple[int, int]) -> bytes:
    """Encode a mask that is zero outside a window of its image; the cost is that of the window.

    Args:
        window: (h, w) bool; h or w may be 0.
        top: row of the image where the window begins.
        left: column where it begins.
        size: (height, width) of the image, which contains the window.
    """
    height = size[0]
    # Transposed, with a zero above and below every column: each run has a begin and an end.
    columns = np.zeros((window.shape[1], window.shape[0] + 2), np.int8)
    columns[:, 1:-1] = window.T
    steps = np.diff(columns, axis=1)  # (w, h + 1): 1 where a run begins, -1 after its end
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    # from column * (h + 1) + row to the position in the image, column * height + row
    for places in (begins, ends):
        column, row = np.divmod(places, window.shape[0] + 1)
        places[:] = (left + column) * height + top + row
    return _encode_runs(begins, ends, size)


def pad(
    code: bytes, size: tuple[int, int], *, top: int, left: int, new_size: tuple[int, int]
) -> bytes:
    """Pad the mask of a part of an image with zeros to that of the whole image, run by run.

    The cost is that of the runs and of the columns that they cross.

    Args:
        code: as for `decode`, of the part.
        size: (height, width) of the part.
        top: row of the image where the part begins.
        left: column where it begins.
        new_size: (height, width) of the image, which contains the part.

    Raises:
        ValueError: as for `decode`.
    """
    height = size[0]
    bounds = np.cumsum(_counts_of(code, size))  # of the runs: zeros, ones, zeros, ones, ...
    begins, ends = bounds[:-1:2], bounds[1::2]
    begins, ends = begins[begins < ends], ends[begins < ends]  # an empty run crosses no column
    # A run that crosses columns of the part is one piece for each: in the image they lie apart.
    first, last = begins // height, (ends - 1) // height
    pieces = last - first + 1
    owner = np.repeat(np.arange(len(begins)), pieces)
    # column of each piece: 0, 1, ... within each run, from its first
    column = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces - first, pieces)
    # from column * height + row to (left + column) * new height + top + row
    shift = (left + column) * new_size[0] + top - column * height
    begins = np.maximum(begins[owner], column * height) + shift
    ends = np.minimum(ends[owner], (column + 1) * height) + shift
    return _encode_runs(begins, ends, new_size)


def _encode_runs(begins: np.ndarray, ends: np.ndarray, size: tuple[int, int]) -> bytes:
    """Encode the runs of ones from positions (N,) to positions (N,), ascending; N may be 0.

    A position is column * height + row. Runs may touch; none is empty.
    """
    height, width = size
    # A run that ends at the bottom of a column and one that begins at the top of the next are one
    # run. apart[i]: run i is not joined to run i + 1. Such runs keep their end, and the run after
    # them keeps its begin; roll moves the last True to the first run, which keeps its begin too.
    apart = np.append(begins[1:] != ends[:-1], True) if len(begins) else np.zeros(0, np.bool_)
    begins, ends = begins[np.roll(apart, 1)], ends[apart]
    # 0, begin, end, begin, end, ..., H * W: the differences are the runs of zeros and ones in turn
    bounds = np.concatenate([[0], np.column_stack([begins, ends]).ravel(), [height * width]])
    counts = np.diff(bounds)
    if counts[-1] == 0:  # COCO writes no empty last run
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
        ValueError: the runs do not fill the image, or the string is not COCO's RLE.
    """
    counts = _counts_of(code, size)
    values = np.arange(len(counts)) % 2 == 1  # every second run is of ones
    # (H * W,) column by column -> (W, H) -> (H, W)
    return np.repeat(values, counts).reshape(size[1], size[0]).T


def decode_columns(
    code: bytes, size: tuple[int, int], *, first: int, end: int
) -> tuple[np.ndarray, int]:
    """Return the columns `first` to `end` - 1 of a mask that its first to last pixel lie in.

    Only these columns are decoded: the cost is that of the object, not of its image.

    Args:
        code: as for `decode`.
        size: (height, width) of the image.
        first: first column to decode, 0 or more.
        end: the column after the last one, W or less.

    Returns:
        (H, n) bool and the column where it begins; n is 0 if these columns have no pixel.

    Raises:
        ValueError: as for `decode`.
    """
    height = size[0]
    counts = _counts_of(code, size)
    ends = np.cumsum(counts)  # of the runs: zeros, ones, zeros, ones, ...
    if len(ends) < 2:
        return np.zeros((height, 0), np.bool_), first
    # the first run of zeros ends where ones begin; the last odd run is the last one of ones
    first = max(first, int(ends[0]) // height)
    end = max(first, min(end, (int(ends[1::2][-1]) - 1) // height + 1))
    # Runs are cut to these columns, and those outside get the length 0.
    counts = np.diff(ends.clip(first * height, end * height), prepend=first * height)
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(end - first, height).T, first


def code_of(value: Any, size: Sequence[int]) -> bytes:
    """Return the compressed string of an RLE object, after checking that its runs fill the image.

    Args:
        value: from a COCO file: {"size": [height, width], "counts": a compressed string or runs}.
        size: (height, width) of its image.

    Raises:
        ValueError: it is not an RLE object, or not one of this size.
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
    """Return the run lengths of a compressed string, as maskApi.c of COCO decodes it.

    A character minus 48 ("0") is six bits: five bits of a number, lowest first, and bit 32, which
    says that more characters follow. Bit 16 of the last character is the sign. From the fourth
    number on, the string holds differences to the number two before (runs of the same value).
    """
    groups = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    invalid = (groups < 0) | (groups > 63)
    if invalid.any():
        raise ValueError(f"expected run lengths, got the character {code[invalid.argmax()]}")
    is_last = groups & 32 == 0
    if not is_last[-1:].all():
        raise ValueError("expected run lengths, got a string that was cut short")
    # first and last character of each number, and how many it has
    lasts = np.flatnonzero(is_last)
    starts = np.append(0, lasts + 1)[:-1]
    lengths = lasts + 1 - starts
    # the n-th character of a number holds its bits from 5 * n on
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    values = (groups & 31) << shifts
    counts: np.ndarray = np.add.reduceat(values, starts) if len(starts) else values
    # two's complement: a number of n characters with its sign bit set means minus 2**(5 * n)
    counts -= (groups[lasts] & 16) >> 4 << 5 * lengths
    # Undo the differences, separately for runs of ones and of zeros. counts[0] is in neither chain:
    # numbers 1 and 2 are stored as they are.
    for chain in (counts[1::2], counts[2::2]):
        chain[:] = np.cumsum(chain)
    # Seven characters are 35 bits, more than any image needs; longer numbers could overflow.
    if counts.sum() != size[0] * size[1] or counts.min(initial=0) < 0 or lengths.max(initial=0) > 7:
        raise ValueError(f"expected runs of {size[0]} x {size[1]} pixels, got {counts.sum()}")
    return counts
