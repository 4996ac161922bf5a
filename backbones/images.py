"""Finding image files, reading them and their sizes. Images are (H, W, 3) uint8 RGB arrays."""

import io
import itertools
import os
import struct
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

import cv2
import numpy as np

from backbones.decoder_messages import with_messages
from backbones.jpeg import JPEG_START, jpeg_size, stored_size, tells_damage
from engine.errors import UserError
from engine.paths import exists, is_file, open_file, resolved

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""File name endings of images."""

MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is decoded, 0.5 GB as RGB: Pillow's limit."""
MAX_FILE_BYTES = 2**30
"""Bytes of the largest file that is read."""
HEADER_BYTES = 1 << 16  # holds the size in most files, and is one read

PNG_START = b"\x89PNG\r\n\x1a\n"

_LISTED, _LOOKED_AT = 1000, 3  # files that bit_depth_note looks at, by name and by content

REDUCTIONS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
"""Factors by which a JPEG can be decoded smaller, and OpenCV's flags for them without colour."""

OnError = Callable[[UserError], object]
"""Called with each problem; it raises it, or returns to go on with the others."""


class BadImageError(UserError):
    """A file that is not an image, is damaged, too large, or of another size than annotated."""


def quiet_opencv() -> None:
    """Stop OpenCV's threads and its log in this process; commands call it before they read images.

    One process per core reads images, so OpenCV needs no threads; what is wrong with an image is
    said in one line. Call it before processes are forked: a child that stops OpenCV's threads would
    wait forever for threads that only its parent has.
    """
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _raise(error: UserError) -> NoReturn:
    raise error


def images_in(
    folder: Path, *, skip_folder: Path | None = None, on_error: OnError = _raise
) -> tuple[list[str], int]:
    """Return the sorted relative paths of images in `folder` at any depth; the number of others.

    Args:
        folder: hidden files and folders in it are skipped. Links to folders are followed, except
            to one that the link itself is in.
        skip_folder: a folder that is skipped too, unless `folder` is inside it.
        on_error: called for each folder or link that cannot be read.

    Raises:
        UserError: a folder or link cannot be read, if `on_error` is not given.
    """
    names = _walk(folder, "", once=False, skip_folder=skip_folder, on_error=on_error)
    images = [name for name in names if name.lower().endswith(SUFFIXES)]
    return images, len(names) - len(images)


def files_below(folder: Path, suffix: str) -> list[str]:
    """Return the sorted relative paths of files with a suffix such as `.txt`, at any depth.

    Hidden files are skipped, and upper and lower case of the suffix are equal. Of links to one
    folder one is followed.

    Raises:
        UserError: a folder cannot be read.
    """
    return _walk(folder, suffix, once=True)


def _walk(
    folder: Path,
    suffix: str,
    *,
    once: bool,
    skip_folder: Path | None = None,
    on_error: OnError = _raise,
) -> list[str]:
    """Return the paths for `images_in` and `files_below`; once: each folder is listed once."""
    apart = resolved(skip_folder) if skip_folder else None
    start = resolved(folder)
    found: list[str] = []
    seen: set[Path] = set()
    waiting: list[tuple[str, frozenset[Path]]] = [("", frozenset())]  # with resolved parents
    while waiting:
        below, parents = waiting.pop()
        location = resolved(folder / below)
        in_apart = apart in location.parents and apart not in start.parents
        if location in (seen if once else parents) or location == apart or in_apart:
            continue
        seen.add(location)
        folders, names = list_folder(f"{folder}/{below}", on_error)
        parents |= {location}
        waiting += [(f"{below}{name}/", parents) for name in folders]
        found += [f"{below}{name}" for name in names if name.lower().endswith(suffix)]
    return sorted(found)


def list_folder(folder: str, on_error: OnError = _raise) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in `folder`, without hidden ones.

    With strings instead of paths, and no system call for each file: ImageNet has 1.3 million.
    `on_error`: see `images_in`.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    (folders if entry.is_dir() else files).append(entry.name)
                except OSError as error:  # a cycle of links
                    on_error(_unreadable(entry.path, error))
    except OSError as error:
        on_error(_unreadable(folder, error))
    return folders, files


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read: {error.strerror}")


def read_image(path: str | Path, *, rotate: bool = True) -> np.ndarray:
    """Return the image at `path` as (H, W, 3) uint8 RGB.

    Grey becomes three equal channels, transparency is dropped, 16 bits become 8 as
    `significant_bits` says. `rotate` applies its EXIF orientation.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        BadImageError: it is not an image, its end is missing, it is damaged or too large.
    """
    return decode(read_file(path), path, rotate=rotate)


def read_file(path: str | Path) -> bytes:
    """Return the bytes of the file at `path`.

    Raises:
        UserError: there is no such file, or it cannot be opened.
        BadImageError: it is a folder, a FIFO or a device, or has more than `MAX_FILE_BYTES`.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise BadImageError(
                    f"{path}: expected an image of at most {MAX_FILE_BYTES} bytes, got {size}"
                )
            return file.read()
    except UserError as error:
        if exists(path) and not is_file(path):
            raise BadImageError(str(error)) from error
        raise


def decode(data: bytes, path: str | Path, *, rotate: bool = True, reduction: int = 1) -> np.ndarray:
    """Return the image in `data` as (H, W, 3) uint8 RGB.

    Args:
        data: the bytes of a file.
        path: its name, for errors.
        rotate: whether its EXIF orientation is applied.
        reduction: a key of `REDUCTIONS`. A JPEG of h x w becomes ceil(h / reduction) x
            ceil(w / reduction), in less time; other formats keep their full size.

    Raises:
        BadImageError: as for `read_image`.
    """
    is_jpeg = data.startswith(JPEG_START)
    # OpenCV would decode the other formats in full and then resize.
    flags = cv2.IMREAD_COLOR_RGB | REDUCTIONS[reduction if is_jpeg else 1]
    flags |= 0 if rotate else cv2.IMREAD_IGNORE_ORIENTATION
    pixels = _decode_deep(data, path, flags)
    if pixels.dtype == np.uint8:
        return pixels
    used = significant_bits(pixels)
    if used == 16 and pixels.dtype == np.uint16 and not data.startswith(PNG_START):
        rounded, _ = _imdecode(data, path, flags)  # by libtiff's own conversion
        if rounded is None:
            raise BadImageError(f"{path}: expected an image that can be decoded to 8 bits")
        return rounded
    return (pixels.clip(0) >> (used - 8)).astype(np.uint8)


def _decode_deep(data: bytes, path: str | Path, flags: int) -> np.ndarray:
    """Return (H, W, 3) RGB as uint8, uint16 or int16, whichever the file holds; see `decode`."""
    is_jpeg = data.startswith(JPEG_START)
    size = stored_size(data) if is_jpeg else _other_size(data, path)
    if is_jpeg and size is None:
        raise BadImageError(f"{path}: expected a whole JPEG file, got one whose end is missing")
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        got = f"{size[1]}x{size[0]} (width x height)"
        raise BadImageError(f"{path}: expected at most {MAX_PIXELS} pixels, got {got}")
    pixels, message = _imdecode(data, path, flags if is_jpeg else flags | cv2.IMREAD_ANYDEPTH)
    if pixels is not None and pixels.dtype.itemsize == 2 and not data.startswith(PNG_START):
        # OpenCV 5 returns colour TIFF files of 16 bits with the red channel three times if asked
        # for RGB
        deep = flags & ~cv2.IMREAD_COLOR_RGB | cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
        pixels, message = _imdecode(data, path, deep)
        pixels = None if pixels is None else pixels[..., ::-1]
    if pixels is None:
        got = f"a file that cannot be decoded{message and f' ({message})'}"
        raise BadImageError(f"{path}: expected a whole image, got {got}")
    if is_jpeg and message and tells_damage(data, message):
        raise BadImageError(f"{path}: expected a whole JPEG file, got a damaged one: {message}")
    if pixels.dtype not in (np.uint8, np.uint16, np.int16):
        raise BadImageError(f"{path}: expected 8 or 16 bits a channel, got {pixels.dtype}")
    return pixels


def significant_bits(pixels: np.ndarray) -> int:
    """Return 8, 10, 12, 14 or 16: the fewest bits that hold the largest value of 16-bit pixels.

    Cameras, microscopes and X-ray detectors store 10, 12 or 14 bits in files of 16, which do not
    say so. The image takes the upper eight of the bits that are used.
    """
    bits = int(pixels.max()).bit_length()
    return max(8, bits + bits % 2)


def bit_depth_note(paths: Iterable[str | Path]) -> str | None:
    """Return a line if one of the first files that are not JPEG has 16 bits a channel, else None.

    Files that cannot be read are skipped: reading them later says why.
    """
    first = itertools.islice(paths, _LISTED)
    others = (path for path in first if not str(path).lower().endswith((".jpg", ".jpeg")))
    for path in itertools.islice(others, _LOOKED_AT):
        with suppress(UserError):
            pixels = _decode_deep(read_file(path), path, cv2.IMREAD_COLOR_RGB)
            if pixels.dtype != np.uint8:
                return (
                    f"{path}: 16 bits a channel, of which {significant_bits(pixels)} are used; "
                    "each such image becomes 8 bits, from the fewest of 8, 10, 12, 14 and 16 "
                    "that hold its brightest value"
                )
    return None


def _imdecode(data: bytes, path: str | Path, flags: int) -> tuple[np.ndarray | None, str]:
    """Return the pixels, or None, and in one line what the decoder printed."""
    if not data:
        return None, ""
    try:
        pixels, message = with_messages(cv2.imdecode, np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise BadImageError(f"{path}: expected an image: {error.err}") from error
    except MemoryError as error:
        raise BadImageError(f"{path}: expected an image that fits into memory") from error
    return pixels, message and "; ".join(message.splitlines())


def _other_size(data: bytes, path: str | Path) -> tuple[int, int] | None:
    """Return (height, width) from the header of a file that is not JPEG; None: not understood."""
    if data.startswith(PNG_START) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    if not data:
        return None
    from PIL import Image  # comes with torchvision, and knows the headers of all formats

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        got = f"more: {error}"
        raise BadImageError(f"{path}: expected at most {MAX_PIXELS} pixels, got {got}") from error
    except Exception:  # with a broken header its readers raise anything
        return None


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the image (H, W, 3) resized to `size` (height, width)."""
    method = resize_method((pixels.shape[0], pixels.shape[1]), size)
    resized: np.ndarray = cv2.resize(pixels, size[::-1], interpolation=method)
    return resized


def resize_method(size: tuple[int, int], resized: tuple[int, int]) -> int:
    """Return OpenCV's interpolation for resizing an image from `size` to `resized`."""
    shrinks = resized[0] < size[0] or resized[1] < size[1]
    return cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR  # linear skips pixels when shrinking


def enlarge(pixels: np.ndarray, length: int, *, wanted: int) -> np.ndarray:
    """Return a copy, enlarged by the whole factor that brings `length` nearest to `wanted`.

    `length` is one of the image's sides; if it is longer already, the copy has the same size.
    """
    factor = max(1, round(wanted / length))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of `read_image(path)`, from the file's header where that tells it.

    Raises:
        UserError: as for `read_image`. A file whose end is missing may go unnoticed.
    """
    size = None
    with suppress(UserError), open_file(path) as file:  # reading it whole says what is wrong
        data = file.read(HEADER_BYTES)
        size = _png_size(file) if data.startswith(PNG_START) else image_size(data)
    if size is None:
        height, width = read_image(path).shape[:2]
        size = height, width
    return size


def _png_size(file: BinaryIO) -> tuple[int, int] | None:
    """Return (height, width) of a PNG file; None if it has EXIF data, is cut or is too large."""
    file.seek(len(PNG_START))
    size = None
    # chunks: length of the content, type, content, checksum
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IHDR" and len(sides := file.read(8)) == 8:
            width, height = struct.unpack(">II", sides)
            size = height, width
            length -= 8
        if kind == b"IEND":
            return size if size and 0 < size[0] * size[1] <= MAX_PIXELS else None
        if kind == b"eXIf":  # it may turn the image
            return None
        file.seek(length + 4, os.SEEK_CUR)
    return None


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the header of a JPEG, EXIF orientation applied.

    None: `data` is not a JPEG, or its header is not complete.
    """
    return jpeg_size(data)
