"""Packed copies of image folders, which are read faster in pretraining.

The copies are smaller JPEG files, or uncompressed BMP files, of which only the crop is read.

A copy has the layout of its source. Its manifest has a line for each file, with the SHA-256 of the
source's bytes and of the copy's, so that an interrupted copy is continued and a changed one found.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from backbones.bitmaps import BITMAP_SUFFIX, encode_bitmap
from backbones.image_processes import map_images
from backbones.images import BadImageError, decode, images_in, read_file, resize_pixels
from backbones.jpeg import is_plain
from engine.errors import UserError
from engine.files import write_file
from engine.locks import FolderLock
from engine.log import RunLog
from engine.paths import (
    exists,
    make_folder,
    names_in,
    open_file,
    require_folder,
    resolved,
    status_of,
)
from engine.schema import BadInputPolicy

MANIFEST = "packed.jsonl"
"""Name of the manifest in the folder of the copy."""
_VERSION = 1
_JPEG_SUFFIXES = (".jpg", ".jpeg")


@dataclass(frozen=True)
class PackSettings:
    """How images are packed.

    short_side: largest length of the shorter side, pixels; a larger image is shrunk. quality: of
    the JPEG files, 1 to 100; None: uncompressed BMP files.
    """

    short_side: int = 400
    quality: int | None = 95

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise UserError(f"--short-side: expected at least 1, got {self.short_side}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"--quality: expected 1 to 100, got {self.quality}")


@dataclass(frozen=True)
class PackedFile:
    """A line of the manifest.

    source, file: paths relative to the two folders. source_sha256, sha256: of their bytes, hex.
    """

    source: str
    file: str
    source_sha256: str
    sha256: str


@dataclass(frozen=True)
class PackReport:
    """What was done: numbers of images, and a line for each one that was skipped.

    removed: copies of images that are no longer in the source. bytes: of all copies.
    """

    packed: int
    kept: int
    removed: int
    bytes: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Outcome:
    """An image's line of the manifest, whether it was packed now; or why it cannot be used."""

    entry: PackedFile | None
    is_new: bool = False
    error: str = ""


def pack_images(
    source: Path,
    output: Path,
    settings: PackSettings,
    *,
    workers: int,
    on_bad_image: BadInputPolicy,
    log: RunLog,
) -> PackReport:
    """Write a packed copy of the images in a folder, or complete one.

    JPEG files that need no shrinking are copied byte for byte, unless EXIF data turn them or their
    colours are stored in a rare way (see `is_plain`). All others become upright RGB JPEG files
    (baseline, 4:2:0), which decode fastest. Without a quality, all become BMP files. Copies that
    are as the manifest says, of unchanged sources, are kept.

    Args:
        source: has a folder for each class, or train/ and val/ with such folders. Hidden files and
            files that are not images are skipped. Not changed.
        output: the folder of the copy; new, empty, or of an earlier copy with the same settings.
        settings: of the copy.
        workers: number of processes; 0: this one alone.
        on_bad_image: error: the first image that cannot be decoded ends the work; skip: such images
            are not copied.
        log: shows the progress.

    Raises:
        UserError: no images; two that would get one name; a folder inside the other; other files in
            `output`, or other settings; a bad image; a file that cannot be written.
    """
    require_folder(source, "the folder of images")
    _check_folders(source, output)
    names, _ = images_in(source)
    targets = _target_names(source, names, settings)
    make_folder(output)
    lock = FolderLock(output)
    try:
        known = _read_manifest(output, settings)
        outcomes = _pack_all(
            source, output, settings, targets, known, workers=workers, policy=on_bad_image, log=log
        )
        entries = [each.entry for each in outcomes if each.entry is not None]
        files = {entry.file for entry in entries}
        removed = [entry for entry in known.values() if entry.file not in files]
        for entry in removed:
            with _writing(output / entry.file):
                (output / entry.file).unlink(missing_ok=True)
        write_file(output / MANIFEST, _manifest_text(settings, entries))
    finally:
        lock.release(output)
    packed = sum(each.is_new for each in outcomes)
    return PackReport(
        packed=packed,
        kept=len(entries) - packed,
        removed=len(removed),
        bytes=sum(_size_of(output / entry.file) for entry in entries),
        skipped=tuple(each.error for each in outcomes if each.error),
    )


def _size_of(path: Path) -> int:
    status = status_of(path)
    return 0 if status is None else status.st_size


def _check_folders(source: Path, output: Path) -> None:
    inner, outer = resolved(output), resolved(source)
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise UserError(
            f"{output}: expected a folder apart from {source}, got one inside the other"
        )


def _target_names(source: Path, names: Sequence[str], settings: PackSettings) -> dict[str, str]:
    """Return the copy's name of each image: JPEG files keep theirs, others end with .jpg.

    Uncompressed copies all end with .bmp.
    """
    if not names:
        raise UserError(f"{source}: expected images in a folder for each class, got none")
    targets: dict[str, str] = {}
    sources: dict[str, str] = {}
    for name in names:
        if "/" not in name:
            raise UserError(f"{source / name}: expected images in a folder for each class")
        target = name
        if settings.quality is None:
            target = str(PurePosixPath(name).with_suffix(BITMAP_SUFFIX))
        elif not name.lower().endswith(_JPEG_SUFFIXES):
            target = str(PurePosixPath(name).with_suffix(".jpg"))
        if target in sources:
            raise UserError(
                f"{source}: expected images of different names, got {sources[target]} and {name}, "
                f"which would both become {target}"
            )
        targets[name], sources[target] = target, name
    return targets


def _pack_all(
    source: Path,
    output: Path,
    settings: PackSettings,
    targets: Mapping[str, str],
    known: Mapping[str, PackedFile],
    *,
    workers: int,
    policy: BadInputPolicy,
    log: RunLog,
) -> list[_Outcome]:
    """Pack all images; each one's line is written as soon as it is done."""
    for folder in sorted({str(Path(target).parent) for target in targets.values()}):
        make_folder(output / folder)
    jobs = [(name, target, known.get(name)) for name, target in targets.items()]
    work = partial(_pack_one, source, output, settings)
    outcomes = []
    path = output / MANIFEST
    write_file(path, _manifest_text(settings, list(known.values())))
    for outcome in map_images(
        work, jobs, workers=workers, log=log, what=f"packing images of {source}"
    ):
        if outcome.error and policy == "error":
            raise UserError(f"{outcome.error}; --on-bad-image skip skips it")
        if outcome.entry is not None and outcome.is_new:
            with _writing(path), path.open("a", encoding="utf-8") as manifest:
                manifest.write(_line(outcome.entry))
        outcomes.append(outcome)
    return outcomes


def _pack_one(
    source: Path,
    output: Path,
    settings: PackSettings,
    job: tuple[str, str, PackedFile | None],
) -> _Outcome:
    name, target, known = job
    path = source / name
    try:
        data = read_file(path)
        digest = hashlib.sha256(data).hexdigest()
        if known is not None and known.file == target and known.source_sha256 == digest:
            with suppress(UserError):  # the copy is missing: pack it again
                copy = read_file(output / target)
                if hashlib.sha256(copy).hexdigest() == known.sha256:
                    return _Outcome(known)
        packed = _packed(data, path, settings)
    except BadImageError as error:
        return _Outcome(None, error=str(error))
    _write(output / target, packed)
    entry = PackedFile(name, target, digest, hashlib.sha256(packed).hexdigest())
    return _Outcome(entry, is_new=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file in one move. Without waiting for the disk: the manifest shows what was lost."""
    partial_path = path.with_name(f".{path.name}.partial")  # hidden, so it is no image
    with _writing(path):
        partial_path.write_bytes(content)
        partial_path.replace(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _packed(data: bytes, path: Path, settings: PackSettings) -> bytes:
    """Return the bytes of the copy of an image."""
    pixels = decode(data, path)
    height, width = pixels.shape[:2]
    scale = settings.short_side / min(height, width)
    if scale < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        pixels = resize_pixels(pixels, size)
    elif settings.quality is not None and is_plain(data):
        return data
    return _encode(pixels, settings.quality)


def _encode(pixels: np.ndarray, quality: int | None) -> bytes:
    if quality is None:
        return encode_bitmap(pixels)
    flags = [
        *(cv2.IMWRITE_JPEG_QUALITY, quality),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
    ]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)
    assert done, "an RGB image can always be encoded"
    return encoded.tobytes()


def _header(settings: PackSettings) -> str:
    return json.dumps({"version": _VERSION, "settings": asdict(settings)}) + "\n"


def _line(entry: PackedFile) -> str:
    return json.dumps(asdict(entry)) + "\n"


def _manifest_text(settings: PackSettings, entries: Sequence[PackedFile]) -> str:
    return _header(settings) + "".join(map(_line, entries))


def _read_manifest(output: Path, settings: PackSettings) -> dict[str, PackedFile]:
    """Return the lines of an earlier copy by source; {} if there is none.

    Raises:
        UserError: the folder has other files, or a copy with other settings.
    """
    path = output / MANIFEST
    if not exists(path):
        if others := [name for name in names_in(output) if name != FolderLock.name]:
            raise UserError(
                f"{output}: expected an empty folder or a packed copy, got {others[0]} in it and "
                f"no {MANIFEST}"
            )
        return {}
    lines = _whole_lines(path)
    header = _parsed(path, next(lines, ""), number=1)
    if header != json.loads(_header(settings)):
        raise UserError(
            f"{path}: expected a copy with {json.dumps(asdict(settings))}, got "
            f"{json.dumps(header.get('settings'))}; choose another folder"
        )
    known = {}
    for number, line in enumerate(lines, start=2):
        values = _parsed(path, line, number=number)
        if values.keys() != PackedFile.__annotations__.keys():
            raise UserError(
                f"{path}: line {number}: expected {', '.join(PackedFile.__annotations__)}"
            )
        entry = PackedFile(**{key: str(value) for key, value in values.items()})
        if ".." in entry.file.split("/") or entry.file.startswith("/"):
            raise UserError(f"{path}: line {number}: expected a file below, got {entry.file}")
        known[entry.source] = entry
    return known


def _whole_lines(path: Path) -> Iterator[str]:
    with open_file(path) as file:
        for line in file:
            if line.endswith(b"\n"):  # a kill may have cut off the last one
                yield line.decode("utf-8", "replace")


def _parsed(path: Path, line: str, *, number: int) -> dict[str, object]:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: line {number}: expected a JSON object; delete the copy to start anew"
        )
    return values
