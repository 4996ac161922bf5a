"""Binary cache of a large COCO JSON, which loads in a fraction of the time of parsing.

The cached copy is a safetensors file beside the JSON with the result of `coco_json.read_tables`.
All processes of a machine share its memory pages.

The copy is valid if the JSON has the same size and the same times of its last change (mtime and
ctime, in nanoseconds) as when the copy was made. If only the times differ (the file was touched,
moved or restored), its SHA-256 decides, and the copy is written again with the new times. So an
edit is missed only if it keeps the size, and the clock was set back or the file system's times are
too coarse. The bytes of the copy, including class names and counts, are checked with CRC-32 sums.
"""

import contextlib
import glob
import json
import os
import stat
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from detection.data.coco_json import AnnotationTable, ImageTable, Tables, read_tables
from detection.data.segmentations import ByteStrings, Segmentations
from engine import paths
from engine.checksum import file_digest
from engine.errors import UserError
from engine.files import write_atomically

SUFFIX = ".resdet-cache"
"""Suffix of the copy, after the full name of the JSON."""
FORMAT = "4"
"""Version of the copy; change it with what is stored or what `read_tables` checks."""
CACHED_BYTES = 20_000_000
"""Minimum size of a JSON for a copy; smaller ones are parsed in less than half a second."""

_ABANDONED_AFTER_S = 3600

COLUMNS = (
    *("ids", "image_ids", "category_ids", "xywh", "areas"),
    *("is_crowd", "is_difficult", "is_ignored", "lacks_area", "lacks_iscrowd"),
)
COUNTS = ("unreadable_masks", "dropped_mask_parts")
"""Fields of `AnnotationTable` that are arrays (COLUMNS) or numbers (COUNTS)."""

Arrays = Mapping[str, np.ndarray]


class _UnusableError(Exception):
    """A copy exists and cannot be used; the message is the reason."""


def read_cached(path: Path, cache_from: int, *, exact: bool) -> tuple[Tables, str] | None:
    """Return the tables of `read_tables` from the cached copy; make the copy if there is none.

    A copy that is damaged or of another version of the file is made again. If it cannot be written,
    the file is parsed without one.

    Args:
        path: the JSON.
        cache_from: minimum size of the JSON in bytes for a copy.
        exact: whether to read polygons in float64; else they are float32 if they come from a copy.
            The copy has both.

    Returns:
        The tables, and a log line. None if the file is smaller, or cannot be read.

    Raises:
        UserError: the file is wrong.
    """
    copy = Path(f"{path}{SUFFIX}")
    verb = "made"
    status = paths.status_of(path)
    if status is None or not stat.S_ISREG(status.st_mode) or status.st_size < cache_from:
        return None
    stamp = _stamp_of(status)
    try:
        if _is_file(copy):
            tables, old = _read_copy(copy, path, stamp, exact=exact)
            note = f"read from its cached copy {copy}"
            if old["times"] != stamp["times"]:
                note += _renew(copy, path, stamp | {"sha256": old["sha256"]}, old)
            return tables, note
    except _UnusableError as reason:
        verb = f"made again (it was {reason})"
    # Hashed before parsing: if the file changes in between, the next start notices it.
    stamp["sha256"] = file_digest(path)
    tables = read_tables(path)
    try:
        _write_copy(copy, tables, stamp)
    except UserError as error:
        return tables, f"parsed at every start, because the cached copy cannot be kept: {error}"
    return tables, f"cached copy {copy} {verb}"


def _is_file(copy: Path) -> bool:
    """Return whether the copy exists; its name may be too long for the file system."""
    with contextlib.suppress(UserError):
        return paths.is_file(copy)
    return False


def _stamp_of(status: os.stat_result) -> dict[str, str]:
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return {"format": FORMAT, "size": str(status.st_size), "times": times}


def _renew(copy: Path, path: Path, stamp: Mapping[str, str], old: Mapping[str, str]) -> str:
    """Write the copy with the new times, or each start would hash the file; extend the note."""
    try:
        # the copy contains the float64 polygons, so all of them must be read to write it again
        tables, _ = _read_copy(copy, path, old, exact=True)
        _write_copy(copy, tables, stamp)
    except UserError as error:
        return f", hashed at every start because its new times cannot be saved: {error}"
    return ", updated with the file's new times"


def _read_copy(
    copy: Path, path: Path, stamp: Mapping[str, str], *, exact: bool
) -> tuple[Tables, Mapping[str, str]]:
    """Return the tables of `path`, and the copy's header, in which the times may differ.

    Raises:
        _UnusableError: the copy is damaged or of another version of the file.
    """
    try:
        header, arrays = _open(copy)
        if any(header.get(key) != stamp[key] for key in ("format", "size")):
            raise _UnusableError("of another version of the file")
        if header["times"] != stamp["times"] and header["sha256"] != file_digest(path):
            raise _UnusableError("of another version of the file")
        if json.loads(header["sums"]) != _sums_of(arrays, header):
            raise _UnusableError("damaged")
        # Computing the sums has loaded all pages of `arrays` into memory. Open the copy again for
        # the arrays that are kept after `read_coco`; the pages of the first mapping are freed with
        # it, and only used ones are loaded again.
        _, kept = _open(copy)
        columns = kept if exact else arrays
        numbers: dict[str, Any] = json.loads(header["counts"])
        numbers |= {name: columns[f"annotation.{name}"] for name in COLUMNS}
        tables = Tables(
            categories=[(key, name) for key, name in json.loads(header["categories"])],
            images=ImageTable(
                ids=kept["image.ids"],
                names=ByteStrings(kept["image.names"], kept["image.name_offsets"]),
                sizes=kept["image.sizes"],
            ),
            annotations=AnnotationTable(
                **numbers,
                segmentations=Segmentations(
                    coordinates=kept[f"segmentation.{'exact_' if exact else ''}coordinates"],
                    part_offsets=kept["segmentation.part_offsets"],
                    object_offsets=kept["segmentation.object_offsets"],
                    run_lengths=ByteStrings(
                        kept["segmentation.run_lengths"], kept["segmentation.run_length_offsets"]
                    ),
                ),
            ),
        )
        return tables, header
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise _UnusableError("damaged") from error


def _write_copy(copy: Path, tables: Tables, stamp: Mapping[str, str]) -> None:
    images, annotations = tables.images, tables.annotations
    segmentations = annotations.segmentations
    arrays = {
        "image.ids": images.ids,
        "image.names": images.names.data,
        "image.name_offsets": images.names.offsets,
        "image.sizes": images.sizes,
        "segmentation.exact_coordinates": segmentations.coordinates,
        "segmentation.coordinates": segmentations.in_float32().coordinates,
        "segmentation.part_offsets": segmentations.part_offsets,
        "segmentation.object_offsets": segmentations.object_offsets,
        "segmentation.run_lengths": segmentations.run_lengths.data,
        "segmentation.run_length_offsets": segmentations.run_lengths.offsets,
        **{f"annotation.{name}": getattr(annotations, name) for name in COLUMNS},
    }
    header = {
        **stamp,
        "categories": json.dumps(tables.categories),
        "counts": json.dumps({name: getattr(annotations, name) for name in COUNTS}),
    }
    header["sums"] = json.dumps(_sums_of(arrays, header))
    # A killed process leaves a large partial file with a unique name, which nothing else removes.
    for name in paths.names_in(copy.parent, f"{glob.escape(copy.name)}.*.partial"):
        partial = copy.with_name(name)
        with contextlib.suppress(OSError):
            status = paths.status_of(partial)
            if status is not None and time.time() - status.st_mtime > _ABANDONED_AFTER_S:
                partial.unlink()
    write_atomically(copy, lambda file: file.write(save(arrays, header)), many_writers=True)


def _open(copy: Path) -> tuple[dict[str, str], Arrays]:
    """Return the header of the copy and memory-mapped arrays, which are read on first use."""
    with safetensors.safe_open(copy, framework="pt") as file:
        names = list(file.keys())
        return file.metadata() or {}, {name: file.get_tensor(name).numpy() for name in names}


def _sums_of(arrays: Arrays, header: Mapping[str, str]) -> dict[str, int]:
    # dtype and shape are included: the same bytes could be read as other arrays
    sums = {
        name: zlib.crc32(array.data, zlib.crc32(f"{array.dtype} {array.shape}".encode()))
        for name, array in arrays.items()
    }
    return sums | {key: zlib.crc32(header[key].encode()) for key in ("categories", "counts")}
