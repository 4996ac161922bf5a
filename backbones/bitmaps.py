"""Uncompressed image files (BMP), of which only a window is read.

Images are (H, W, 3) uint8 arrays. The files have the order BGR and rows that are padded to whole
groups of 4 bytes. Here the top row comes first, which all readers of BMP understand; most programs
write the bottom row first.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from backbones.images import MAX_PIXELS

BITMAP_SUFFIX = ".bmp"

# Magic, file size, reserved, start of the pixels; size of the second header, width, height,
# planes, bits a pixel, compression. "BITMAPFILEHEADER" and "BITMAPINFOHEADER" of Windows.
_HEADER = struct.Struct("<2sIIIIiiHHI")
_FILE_HEADER_BYTES = 14
_REST_BYTES = 20  # of the second header: size of the pixels, resolution, palette; 0 is allowed


@dataclass(frozen=True)
class Bitmap:
    """An open BMP file of 24 bits a pixel, the top row first.

    descriptor: of the open file. size: (height, width). start: of the pixels in the file, bytes.
    """

    descriptor: int
    size: tuple[int, int]
    start: int

    def read_bgr(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the window, (h, w, 3) BGR; reads only its rows. Slices have start and stop."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        stride = _stride(self.size[1])
        data = os.pread(self.descriptor, height * stride, self.start + rows.start * stride)
        return np.ndarray(
            (height, width, 3),
            np.uint8,
            buffer=data,
            offset=3 * columns.start,
            strides=(stride, 3, 1),
        )


def as_bitmap(file: BinaryIO) -> Bitmap | None:
    """Return the window reader of a BMP file whose top row comes first.

    None: another kind of file, or its end is missing; decode it as a whole. The result can be used
    while the file is open.
    """
    descriptor = file.fileno()
    data = os.pread(descriptor, _HEADER.size, 0)
    if len(data) < _HEADER.size:
        return None
    magic, _, _, start, _, width, height, _, bits, compression = _HEADER.unpack(data)
    # a height below 0 says that the top row comes first
    if magic != b"BM" or bits != 24 or compression != 0 or width < 1 or height >= 0:
        return None
    is_whole = os.fstat(descriptor).st_size >= start - height * _stride(width)
    if not is_whole or -height * width > MAX_PIXELS:
        return None
    return Bitmap(descriptor, (-height, width), start)


def encode_bitmap(pixels: np.ndarray) -> bytes:
    """Return an image (H, W, 3) RGB as a BMP file of 24 bits a pixel, the top row first."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, _stride(width)), np.uint8)
    rows[:, : 3 * width] = pixels[..., ::-1].reshape(height, 3 * width)
    start = _HEADER.size + _REST_BYTES
    header = _HEADER.pack(
        *(b"BM", start + rows.size, 0, start, start - _FILE_HEADER_BYTES, width, -height, 1, 24, 0)
    )
    return header + bytes(_REST_BYTES) + rows.tobytes()


def _stride(width: int) -> int:
    """Return the bytes of a row."""
    return (3 * width + 3) // 4 * 4
