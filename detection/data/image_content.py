"""What image files contain: whether they decode, their sizes, and checksums of their content."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from backbones.image_processes import map_images
from backbones.images import BadImageError, decode, read_file
from backbones.jpeg import JPEG_START, stored_size
from detection.data.image_files import image_path
from engine.errors import UserError
from engine.log import RunLog

MOST_WORKERS = 8
"""More processes than this wait for the disk, and each takes memory."""
DIGEST_BYTES = 16
THUMBNAIL_SIDE = 32
"""Pixels; 1 KB an image."""


@dataclass(frozen=True)
class ImageFact:
    """One file.

    size: (height, width) as training sees it, EXIF rotation applied; None if it cannot be decoded.
    stored: the same before the rotation. digest: of the decoded pixels and the size, so that an
    image saved again without loss has the same; of the file's bytes if it cannot be decoded; empty
    if it cannot even be read (`is_missing`). thumbnail: (32, 32) uint8 grey levels, averages of the
    image's areas; empty if it cannot be decoded. error: why not.
    """

    size: tuple[int, int] | None = None
    stored: tuple[int, int] | None = None
    digest: bytes = b""
    thumbnail: bytes = b""
    error: str = ""
    is_missing: bool = False


Facts = Mapping[str, ImageFact]
"""By `file_name`."""


def default_workers() -> int:
    """Return the number of processes for `read_facts` on this machine."""
    return min(MOST_WORKERS, os.cpu_count() or 1)


def read_facts(folder: Path, names: Iterable[str], *, workers: int, log: RunLog) -> Facts:
    """Decode every image once.

    Args:
        folder: the folder of the images.
        names: their file names; empty and repeated ones are skipped.
        workers: number of processes; 0 decodes in this one.
        log: shows the progress.

    Raises:
        UserError: a process was killed.
    """
    wanted = [name for name in dict.fromkeys(names) if name]
    found = map_images(
        partial(_fact_of, folder),
        wanted,
        workers=workers,
        log=log,
        what=f"decoding images of {folder}",
    )
    return dict(zip(wanted, found, strict=True))


def _fact_of(folder: Path, name: str) -> ImageFact:
    try:
        path = image_path(folder, name)
        data = read_file(path)
    except UserError as error:
        return ImageFact(error=_reason(error), is_missing=True)
    try:
        pixels = decode(data, path)
    except BadImageError as error:
        return ImageFact(digest=_digest_of(data), error=_reason(error))
    height, width = pixels.shape[:2]
    digest = _digest_of(str(pixels.shape).encode(), np.ascontiguousarray(pixels).data)
    stored = stored_size(data) if data.startswith(JPEG_START) else None
    return ImageFact((height, width), stored or (height, width), digest, _thumbnail_of(pixels))


def _thumbnail_of(pixels: np.ndarray) -> bytes:
    # grey after the resize: a thousandth of the pixels, and both are linear
    small = cv2.resize(pixels, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return bytes(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).data)


def _digest_of(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _reason(error: UserError) -> str:
    """Return a message without the path, which the example names."""
    return str(error).partition(": ")[2] or str(error)
