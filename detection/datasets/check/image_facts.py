"""What image files contain: whether they decode, their sizes, and checksums of their content."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from backbones.images import BadImageError, decode, quiet_opencv, read_file
from backbones.jpeg import JPEG_START, stored_size
from detection.data.box_checks import format_size
from detection.data.data_report import file_keys
from detection.data.image_files import image_path
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import FindingList
from engine.errors import UserError
from engine.log import RunLog

FEWEST_FOR_PROCESSES = 500
"""Starting processes takes as long as decoding some hundred images."""
DIGEST_BYTES = 16


@dataclass(frozen=True)
class ImageFact:
    """One file.

    size: (height, width) as training sees it, EXIF rotation applied; None if it cannot be decoded.
    stored: the same before the rotation. digest: of the decoded pixels and the size. error: why it
    cannot be decoded. is_missing: it cannot even be read.
    """

    size: tuple[int, int] | None = None
    stored: tuple[int, int] | None = None
    digest: bytes = b""
    error: str = ""
    is_missing: bool = False


Facts = Mapping[str, ImageFact]
"""By `file_name`."""


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
    read = partial(_fact_of, folder)
    if workers == 0 or len(wanted) < FEWEST_FOR_PROCESSES:
        found = log.progress(map(read, wanted), len(wanted), f"decoding images of {folder}")
        return dict(zip(wanted, found, strict=True))
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=quiet_opencv) as pool:
        results = pool.map(read, wanted, chunksize=32)
        try:
            found = log.progress(results, len(wanted), f"decoding images of {folder}")
            return dict(zip(wanted, found, strict=True))
        except BrokenProcessPool as error:
            raise UserError(
                f"{folder}: a process that decodes images was killed, for lack of memory? "
                "--workers 0 takes the least"
            ) from error


def _fact_of(folder: Path, name: str) -> ImageFact:
    try:
        path = image_path(folder, name)
        data = read_file(path)
    except UserError as error:
        return ImageFact(error=_reason(error), is_missing=True)
    try:
        pixels = decode(data, path)
    except BadImageError as error:
        return ImageFact(error=_reason(error))
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=DIGEST_BYTES)
    digest.update(np.ascontiguousarray(pixels).data)
    stored = stored_size(data) if data.startswith(JPEG_START) else None
    return ImageFact((height, width), stored or (height, width), digest.digest())


def _reason(error: UserError) -> str:
    """Return a message without the path, which the example names."""
    return str(error).partition(": ")[2] or str(error)


def find_images(columns: Columns, facts: Facts, findings: FindingList) -> None:
    """Add images that are missing, damaged, of another size, or there twice."""
    images = columns.images
    known = [facts.get(name) for name in images.names]
    missing: list[int] = []
    damaged: list[int] = []
    rotated: list[int] = []
    resized: list[int] = []
    for at, fact in enumerate(known):
        if fact is None:
            continue
        size = tuple(images.sizes[at].tolist())
        if fact.size is None:
            (missing if fact.is_missing else damaged).append(at)
        elif size not in ((0, 0), fact.size):
            is_rotated = fact.stored == size and fact.size == size[::-1]
            (rotated if is_rotated else resized).append(at)

    def sizes_of(at: int) -> str:
        fact = known[at]
        assert fact is not None
        assert fact.size is not None
        size = tuple(images.sizes[at].tolist())
        swapped = ": width and height are swapped" if fact.size == size[::-1] else ""
        return f"the file has {format_size(fact.size)}, annotated {format_size(size)}{swapped}"

    for code, places in (("image-missing", missing), ("image-damaged", damaged)):
        findings.add_images(code, _array(places), lambda at: getattr(known[at], "error", ""))
    for code, places in (("exif-ignored", rotated), ("image-other-size", resized)):
        findings.add_images(code, _array(places), sizes_of)
    # one file that several images name is a finding of its own
    first: dict[bytes, int] = {}
    twins, keys = {}, file_keys(images.names)
    for at, fact in enumerate(known):
        if fact is not None and fact.digest:
            earlier = first.setdefault(fact.digest, at)
            if keys[earlier] != keys[at]:
                twins[at] = earlier
    findings.add_images(
        "duplicate-image", _array([*twins]), lambda at: f"like {images.names[twins[at]]}"
    )


def _array(places: Sequence[int]) -> np.ndarray:
    return np.array(places, np.int64)
