"""JPEG headers, read without decoding: size, EXIF orientation, end marker; libjpeg's warnings."""

import re
import struct
from collections.abc import Iterator
from contextlib import suppress

JPEG_START = b"\xff\xd8"
MAX_STRAY_BYTES = 8
"""Some encoders leave up to this many bytes between the scan and the next marker; damaged files
have more."""

# 0xFF, then neither a stuffed zero, nor a restart marker, nor a fill byte. ITU-T T.81, B.1.1.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_END, _APP1, _APP14, _SCAN = 0xD9, 0xE1, 0xEE, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # headers that hold the size
_HUFFMAN_FRAMES = frozenset(range(0xC0, 0xC3))  # baseline, extended, progressive
_EXIF, _EXIF_ORIENTATION = b"Exif\0\0", 0x0112
_ADOBE = b"Adobe"
_LUMA_SAMPLINGS = b"\x11\x21\x12\x22\x41"  # 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1
_EXIF_ROTATED = range(5, 9)  # orientations that swap height and width
_STRAY = re.compile(r"(\d+) extraneous bytes before marker")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the decoded (height, width), after EXIF orientation, from the header alone.

    None if `data` is not a JPEG, or its header is incomplete.
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
        elif marker == _SCAN:  # EXIF data may follow the frame header, but not the start of scan
            if size is None or not all(size):
                return None
            return size[::-1] if orientation in _EXIF_ROTATED else size
    return None


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Return the stored (height, width) of a JPEG, before EXIF orientation.

    None if the end of the file is missing (OpenCV 4 decodes such a file without any warning);
    (0, 0) if the file has an end but no frame header.
    """
    size = None
    for marker, start, _ in _segments(data):
        if marker in _FRAMES and size is None:
            size = _frame_size(data, start)
        elif marker == _END:
            return size or (0, 0)
    return None


def is_plain(data: bytes) -> bool:
    """Return whether all decoders read the JPEG in `data`, as far as its headers tell.

    It has an end, is upright, with 8 bits, Huffman coding, and grey or YCbCr colours in a usual
    subsampling. Others are turned by EXIF data, or decoders differ in how they read their colours.
    Damage between the headers is not noticed.
    """
    frame = None
    for marker, start, _ in _segments(data) if data.startswith(JPEG_START) else ():
        content = _content(data, start) if marker != _SCAN else b""
        if marker == _APP1 and content.startswith(_EXIF):
            if _exif_orientation(content[len(_EXIF) :]) != 1:
                return False
        elif marker == _APP14 and content.startswith(_ADOBE) and content[11:12] == b"\0":
            return False  # no colour transform: RGB or CMYK
        elif marker in _FRAMES and frame is None:
            frame = marker, content
        elif marker == _END:
            return frame is not None and _is_plain_frame(*frame)
    return False


def _is_plain_frame(marker: int, content: bytes) -> bool:
    # sample precision, height, width, number of components; of each: id, sampling, table
    if marker not in _HUFFMAN_FRAMES or content[:1] != b"\x08" or len(content) < 6:
        return False
    if content[5] == 1:
        return len(content) == 9
    ids, samplings = content[6::3], content[7::3]
    return (
        content[5] == 3
        and len(content) == 15
        and ids != b"RGB"
        and samplings[0] in _LUMA_SAMPLINGS
        and samplings[1:] == b"\x11\x11"
    )


def tells_damage(data: bytes, message: str) -> bool:
    """Return whether libjpeg's warning about the JPEG in `data` means that pixels are wrong.

    "Extraneous bytes" are harmless between the segments before the first scan, and as padding: a
    few bytes, or bytes that all have one value. Other extraneous bytes are pixel data that the
    decoder could not read after it lost its position.
    """
    stray = _STRAY.search(message)
    if stray is None:
        return "Corrupt JPEG data" in message or "Premature end" in message
    count = int(stray[1])
    if count <= MAX_STRAY_BYTES:
        return False
    in_scan = False
    for marker, start, previous_end in _segments(data):
        if in_scan and len(set(data[start - count : start])) > 1:
            return True
        if not in_scan and start - previous_end >= count:
            return False  # the warning is about this gap: libjpeg prints only its first warning
        in_scan |= marker == _SCAN
    return False


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, its offset, end of the previous segment) of each segment, in order.

    Segments are skipped by their length field, because a thumbnail inside one has segments too.
    Segments that were cut off are missing.
    """
    position = len(JPEG_START)
    while match := _MARKER.search(data, position):
        start, body = match.span()
        yield data[body - 1], start, position
        position = body + int.from_bytes(data[body : body + 2], "big")


def _content(data: bytes, start: int) -> bytes:
    """Return the payload of the segment with its marker at `start`; shorter if it was cut off."""
    # 2 bytes of marker, then the big-endian length, which counts its own 2 bytes
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    return data[start + 4 : start + 2 + length]


def _frame_size(data: bytes, start: int) -> tuple[int, int] | None:
    """Return (height, width) in a frame header; None if it was cut off."""
    content = _content(data, start)
    # 1 byte of sample precision, then height and width
    return struct.unpack_from(">HH", content, 1) if len(content) >= 5 else None


def _exif_orientation(tiff: bytes) -> int:
    """Return the orientation (1 to 8) in EXIF data, which are a TIFF header; 1 if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    with suppress(struct.error):  # truncated EXIF data are ignored
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            # tag, type, number of values, then the value itself, left-aligned in four bytes
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, place)
            if tag == _EXIF_ORIENTATION:
                return int(value)
    return 1
