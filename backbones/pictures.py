"""Finding picture files, reading them and their sizes. Pictures are (H, W, 3) uint8 RGB arrays."""

import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from engine.errors import UserError

# Pictures are read by one process for each core. Set before they are forked: a worker that wanted
# to stop OpenCV's threads would wait for ever for those that only its parent has.
cv2.setNumThreads(0)
# What is wrong with a picture is said in one line, by an error.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of the files in a folder, those that are taken for pictures."""

# After 0xFF: neither a stuffed zero, nor a restart, nor a fill byte. ITU-T T.81, B.1.1.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
JPEG_START, JPEG_END, JPEG_APP1 = b"\xff\xd8", 0xD9, 0xE1
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # headers that hold the size
EXIF, EXIF_ORIENTATION = b"Exif\0\0", 0x0112
EXIF_TURNED = range(5, 9)  # orientations that swap height and width
HEADER_BYTES = 1 << 16  # holds the size in most files, and is one read

REDUCTIONS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
"""Factors by which a JPEG can be decoded smaller, and OpenCV's flags for them but for colour."""


class BadPictureError(UserError):
    """A file that is no picture, is cut short, or is of another size than annotated."""


def pictures_in(folder: Path, *, apart_from: Path | None = None) -> tuple[list[str], int]:
    """Return the paths of pictures in `folder` at any depth, from it on, sorted; and other files.

    Args:
        folder: hidden files and folders in it are not looked at.
        apart_from: nor is this one, nor what lies in it.

    Raises:
        UserError: a folder cannot be read.
    """
    apart = apart_from.resolve() if apart_from else None
    pictures: list[str] = []
    num_others = 0
    waiting = [""]
    while waiting:
        below = waiting.pop()
        if apart and (folder / below).resolve().is_relative_to(apart):
            continue
        folders, files = list_folder(f"{folder}/{below}")
        waiting += [f"{below}{name}/" for name in folders]
        inside = [f"{below}{name}" for name in files if name.lower().endswith(SUFFIXES)]
        pictures += inside
        num_others += len(files) - len(inside)
    return sorted(pictures), num_others


def list_folder(folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in `folder`, hidden ones left out.

    By strings, not by paths, and without a question about each file: ImageNet has 1.3 million.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error
    return folders, files


def read_image(path: str | Path, *, rotate: bool = True) -> np.ndarray:
    """Return the picture at `path` as (H, W, 3) uint8 RGB.

    Grey becomes three equal channels, transparency is dropped, 16 bits become 8. `rotate` turns it
    as its EXIF orientation says.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        BadPictureError: it is no picture, or its end is missing.
    """
    return decode(read_file(path), path, rotate=rotate)


def read_file(path: str | Path) -> bytes:
    """Return the bytes of the file at `path`.

    Raises:
        UserError: there is no such file, or it cannot be opened.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def decode(data: bytes, path: str | Path, *, rotate: bool = True, reduction: int = 1) -> np.ndarray:
    """Return the picture in `data` as (H, W, 3) uint8 RGB.

    Args:
        data: a whole file.
        path: its name, for errors.
        rotate: whether it is turned as its EXIF orientation says.
        reduction: a key of `REDUCTIONS`. A JPEG of h x w becomes ceil(h / reduction) x
            ceil(w / reduction), in less time; other formats come at their full size.

    Raises:
        BadPictureError: it is no picture, or its end is missing.
    """
    is_jpeg = data.startswith(JPEG_START)
    if is_jpeg and not _has_jpeg_end(data):
        raise BadPictureError(f"{path}: expected a whole JPEG file, got one whose end is missing")
    # OpenCV would decode the other formats in full and then resize.
    flags = cv2.IMREAD_COLOR_RGB | REDUCTIONS[reduction if is_jpeg else 1]
    flags |= 0 if rotate else cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels: np.ndarray | None = (
            cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
        )
    except cv2.error as error:
        raise BadPictureError(f"{path}: expected a picture: {error.err}") from error
    if pixels is None:
        raise BadPictureError(
            f"{path}: expected a whole picture, got a file that cannot be decoded"
        )
    return pixels


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the picture (H, W, 3) at `size` (height, width)."""
    shrinks = size[0] < pixels.shape[0] or size[1] < pixels.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR  # linear skips pixels when shrinking
    resized: np.ndarray = cv2.resize(pixels, size[::-1], interpolation=method)
    return resized


def enlarge(pixels: np.ndarray, length: int, *, wanted: int) -> np.ndarray:
    """Return a copy, enlarged by the whole factor that brings `length` nearest to `wanted`.

    `length` is one of the picture's sides; where it is longer already, the copy is no larger.
    """
    factor = max(1, round(wanted / length))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of `read_image(path)`, decoding it only where its header is silent.

    Raises:
        UserError: as for `read_image`. A file whose end is missing may go unnoticed.
    """
    try:
        with Path(path).open("rb") as file:
            size = picture_size(file.read(HEADER_BYTES))
    except OSError:
        size = None  # reading it whole says what is wrong
    if size is None:
        height, width = read_image(path).shape[:2]
        size = height, width
    return size


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) that decoding would give, EXIF orientation applied, from the header.

    None: `data` is no JPEG, or its header is not whole.
    """
    if not data.startswith(JPEG_START):
        return None
    orientation = None
    for marker, content in _jpeg_segments(data):
        if marker == JPEG_APP1 and content.startswith(EXIF) and orientation is None:
            orientation = _exif_orientation(content[len(EXIF) :])
        elif marker in JPEG_FRAMES and len(content) >= 5:
            height, width = struct.unpack_from(">HH", content, 1)
            if not height or not width:
                return None
            return (width, height) if orientation in EXIF_TURNED else (height, width)
    return None


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
            if tag == EXIF_ORIENTATION:
                return int(value)
    return 1


def _has_jpeg_end(data: bytes) -> bool:
    """Return whether the JPEG in `data` ends: OpenCV 4 decodes a part of one without a word."""
    return any(marker == JPEG_END for marker, _ in _jpeg_segments(data))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of each segment, in order; what was cut off is not there.

    They are stepped over by their length, since a thumbnail in one of them has segments as well.
    """
    position = len(JPEG_START)
    while match := JPEG_MARKER.search(data, position):
        position = match.end()
        length = int.from_bytes(data[position : position + 2], "big")
        yield data[position - 1], data[position + 2 : position + length]
        position += length
