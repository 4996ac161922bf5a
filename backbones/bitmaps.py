"""Uncompressed image files (BMP), of which only a window is read.

Images are (H, W, 3) uint8 RGB; BMP files have the order BGR, the bottom row first, and rows that
are padded to whole groups of 4 bytes.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np

from backbones.images import MAX_PIXELS

BITMAP_SUFFIX = ".bmp"

# Magic, file size, reserved, start of the pixels; size of the second header, width, height,
# planes, bits a pixel, compression. "BITMAPFILEHEADER" and "BITMAPINFOHEADER" of Windows.
_HEADER = struct.Struct("<2sIIIIiiHHI")


@dataclass(frozen=True)
class Bitmap:
    """An open BMP file of 24 bits a pixel.

    size: (height, width). start: position of the pixels in the file, bytes.
    """

    file: BinaryIO
    size: tuple[int, int]
    start: int

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the window, (h, w, 3) RGB; reads only its rows. Slices have start and stop."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        stride = _stride(self.size[1])
        self.file.seek(self.start + (self.size[0] - rows.stop) * stride)
        data = self.file.read(height * stride)
        stored = np.ndarray(
            (height, width, 3),
            np.uint8,
            buffer=data,
            offset=3 * columns.start,
            strides=(stride, 3, 1),
        )
        window: np.ndarray = cv2.flip(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), 0)
        return window


def as_bitmap(file: BinaryIO) -> Bitmap | None:
    """Return the BMP file; None: another kind, or its end is missing, so decode it as a whole."""
    data = file.read(_HEADER.size)
    if len(data) < _HEADER.size:
        return None
    magic, _, _, start, _, width, height, _, bits, compression = _HEADER.unpack(data)
    if magic != b"BM" or bits != 24 or compression != 0 or width < 1 or height < 1:
        return None  # a height below 0: the top row comes first
    is_whole = os.fstat(file.fileno()).st_size >= start + height * _stride(width)
    if not is_whole or height * width > MAX_PIXELS:
        return None
    return Bitmap(file, (height, width), start)


def _stride(width: int) -> int:
    """Return the bytes of a row."""
    return (3 * width + 3) // 4 * 4
