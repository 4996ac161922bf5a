"""A cached copy beside a large COCO JSON, which loads in a fraction of the time.

It is a safetensors file of what `coco_json.read_tables` returns, and all processes of one machine
share its pages.

The copy is taken to be of the JSON as it is where the JSON has the size and the times of its last
change (mtime and ctime, to the nanosecond) that it had when it was packed. Where only the times
differ (it was touched, moved, restored), its SHA-256 decides, and the copy is written again with
the new times. So an edit goes unnoticed only where it keeps the size, and the clock was set back or
the file system's times are too coarse to tell it from the last. The copy's own bytes, class names
and counts among them, are held against check sums.
"""

import contextlib
import glob
import hashlib
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
from engine.errors import UserError
from engine.files import write_atomically

SUFFIX = ".resdet-cache"
"""Of the copy, after the JSON's own name."""
FORMAT = "4"
"""Another one where anything changes in what is stored or in what `read_tables` checks."""
CACHED_BYTES = 20_000_000
"""Size from which a JSON has a copy; a smaller one is parsed in less than half a second."""

_ABANDONED_AFTER_S = 3600

COLUMNS = (
    *("ids", "image_ids", "category_ids", "xywh", "areas"),
    *("is_crowd", "is_difficult", "is_ignored", "lacks_area", "lacks_iscrowd"),
)
COUNTS = ("unreadable_masks", "dropped_mask_parts")
"""Of `AnnotationTable`."""

Arrays = Mapping[str, np.ndarray]


class _UnusableError(Exception):
    """A copy is there and cannot be used; says why."""


def read_cached(path: Path, cache_from: int, *, exact: bool) -> tuple[Tables, str] | None:
    """Return what `read_tables` does, from the cached copy; make the copy where there is none.

    A copy that is damaged or of another state of the file is made anew; one that cannot be written
    is left out.

    Args:
        path: the JSON.
        cache_from: its size in bytes from which it has a copy.
        exact: whether polygons are taken in float64; from a copy they come in float32 if not. The
            copy has both.

    Returns:
        The tables, and what was done. None: the file is smaller, or cannot be read.

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
        verb = f"made anew (it was {reason})"
    # Before the file is parsed, so that a change in between is noticed the next time.
    stamp["sha256"] = _digest_of(path)
    tables = read_tables(path)
    try:
        _write_copy(copy, tables, stamp)
    except UserError as error:
        return tables, f"parsed, and will be again, without a cached copy: {error}"
    return tables, f"cached copy {copy} {verb}"


def _is_file(copy: Path) -> bool:
    """Whether a copy is there; the JSON's name may be too long for one."""
    with contextlib.suppress(UserError):
        return paths.is_file(copy)
    return False


def _stamp_of(status: os.stat_result) -> dict[str, str]:
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return {"format": FORMAT, "size": str(status.st_size), "times": times}


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with paths.open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _renew(copy: Path, path: Path, stamp: Mapping[str, str], old: Mapping[str, str]) -> str:
    """Write the copy again, or each start would hash the file; return what to add to the note."""
    try:
        tables, _ = _read_copy(copy, path, old, exact=True)
        _write_copy(copy, tables, stamp)
    except UserError as error:
        return f", hashed because its times are new, and will be again: {error}"
    return ", which has the file's new times now"


def _read_copy(
    copy: Path, path: Path, stamp: Mapping[str, str], *, exact: bool
) -> tuple[Tables, Mapping[str, str]]:
    """Return the tables of `path`, and the copy's header, which may be of other times.

    Raises:
        _UnusableError: the copy does not have them.
    """
    try:
        about, arrays = _open(copy)
        if any(about.get(key) != stamp[key] for key in ("format", "size")):
            raise _UnusableError("of another state of the file")
        if about["times"] != stamp["times"] and about["sha256"] != _digest_of(path):
            raise _UnusableError("of another state of the file")
        if json.loads(about["sums"]) != _sums_of(arrays, about):
            raise _UnusableError("damaged")
        # What outlives the checks of `read_coco` gets a mapping of its own, so that the pages of
        # the rest, and those that the sums have touched, leave memory with this one.
        _, kept = _open(copy)
        columns = kept if exact else arrays
        numbers: dict[str, Any] = json.loads(about["counts"])
        numbers |= {name: columns[f"annotation.{name}"] for name in COLUMNS}
        tables = Tables(
            categories=[(key, name) for key, name in json.loads(about["categories"])],
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
        return tables, about
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
    about = {
        **stamp,
        "categories": json.dumps(tables.categories),
        "counts": json.dumps({name: getattr(annotations, name) for name in COUNTS}),
    }
    about["sums"] = json.dumps(_sums_of(arrays, about))
    # A kill in the middle leaves a large file of a name that no one will write again.
    for name in paths.names_in(copy.parent, f"{glob.escape(copy.name)}.*.partial"):
        left = copy.with_name(name)
        with contextlib.suppress(OSError):
            status = paths.status_of(left)
            if status is not None and time.time() - status.st_mtime > _ABANDONED_AFTER_S:
                left.unlink()
    write_atomically(copy, lambda file: file.write(save(arrays, about)), many_writers=True)


def _open(copy: Path) -> tuple[dict[str, str], Arrays]:
    """Return what the copy says about itself, and views of its arrays, of which none is read."""
    with safetensors.safe_open(copy, framework="pt") as file:
        names = list(file.keys())
        return file.metadata() or {}, {name: file.get_tensor(name).numpy() for name in names}


def _sums_of(arrays: Arrays, about: Mapping[str, str]) -> dict[str, int]:
    sums = {
        name: zlib.crc32(array.data, zlib.crc32(f"{array.dtype} {array.shape}".encode()))
        for name, array in arrays.items()
    }
    return sums | {key: zlib.crc32(about[key].encode()) for key in ("categories", "counts")}
