"""JPEG files without decoding them: segments, size, orientation, end, and libjpeg's warnings."""

import re
import struct
from collections.abc import Iterator
from contextlib import suppress

JPEG_START = b"\xff\xd8"
MAX_STRAY_BYTES = 8
"""Bytes between pixels and the next marker that some encoders leave; damage leaves more."""

# After 0xFF: neither a stuffed zero, nor a restart, nor a fill byte. ITU-T T.81, B.1.1.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_END, _APP1, _SCAN = 0xD9, 0xE1, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # headers that hold the size
_EXIF, _EXIF_ORIENTATION = b"Exif\0\0", 0x0112
_EXIF_TURNED = range(5, 9)  # orientations that swap height and width
_STRAY = re.compile(r"(\d+) extraneous bytes before marker")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) that decoding would give, EXIF orientation applied, from the header.

    None: `data` is no JPEG, or its header is not whole.
    """
    if not data.startswith(JPEG_START):
        return None
    orientation = size = None
    for marker, start, _ in _segments(data):
        if marker == _APP1 and orientation is None:
            content = _content(data, start)
            if content.startswith(_EXIF):
                orientation = _exif_orientation(content[len(_EXIF) :])
        elif marker in _FRAMES and size is None:
            size = _frame_size(data, start)
        elif marker == _SCAN:  # EXIF data may stand behind the frame's header, but not behind this
            if size is None or not all(size):
                return None
            return size[::-1] if orientation in _EXIF_TURNED else size
    return None


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of the pixels in a JPEG, not turned; None: its end is missing.

    (0, 0) where there are none. OpenCV 4 decodes a part of a file without a word.
    """
    size = None
    for marker, start, _ in _segments(data):
        if marker in _FRAMES and size is None:
            size = _frame_size(data, start)
        elif marker == _END:
            return size or (0, 0)
    return None


def tells_damage(data: bytes, message: str) -> bool:
    """Return whether libjpeg's warning about the JPEG in `data` tells of wrong pixels.

    Stray bytes harm no pixel between the segments before the first, nor where they fill up: few of
    them, or all of one value. Else they are what a decoder that lost its place left unread.
    """
    stray = _STRAY.search(message)
    if stray is None:
        return "Corrupt JPEG data" in message or "Premature end" in message
    count = int(stray[1])
    if count <= MAX_STRAY_BYTES:
        return False
    in_pixels = False
    for marker, start, after in _segments(data):
        if in_pixels and len(set(data[start - count : start])) > 1:
            return True
        if not in_pixels and start - after >= count:
            return False  # libjpeg prints its first warning alone
        in_pixels |= marker == _SCAN
    return False


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, its place, where the segment before it ended) of each segment, in order.

    They are stepped over by their length, since a thumbnail in one of them has segments as well.
    What was cut off is not there.
    """
    position = len(JPEG_START)
    while match := _MARKER.search(data, position):
        start, body = match.span()
        yield data[body - 1], start, position
        position = body + int.from_bytes(data[body : body + 2], "big")


def _content(data: bytes, start: int) -> bytes:
    """Return what is in the segment whose marker is at `start`, as far as it is there."""
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    return data[start + 4 : start + 2 + length]


def _frame_size(data: bytes, start: int) -> tuple[int, int] | None:
    """Return (height, width) that a frame's header holds; None where it was cut off."""
    content = _content(data, start)
    return struct.unpack_from(">HH", content, 1) if len(content) >= 5 else None


def _exif_orientation(tiff: bytes) -> int:
    """Return the orientation that EXIF data (a TIFF header) ask for; 1: upright, or none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    with suppress(struct.error):  # cut short: what it says is not heeded
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            # tag, type, number of values, then the value itself, left-aligned in four bytes
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, place)
            if tag == _EXIF_ORIENTATION:
                return int(value)
    return 1
