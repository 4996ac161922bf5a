"""Segmentations of a COCO file (polygons and RLE), and byte strings, in a few flat arrays.

Worker processes share the pages of an array for as long as nobody writes to them, while each look
at a Python object writes its reference count and so copies its page: lists of a million small
objects make the memory of workers grow over an epoch.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from detection.ops.rle import code_of
from engine.errors import UserError

FARTHEST = 2.0**24
"""Pixels from the corner to a polygon; beyond, float32 does not hold every pixel."""


@dataclass(frozen=True)
class ByteStrings:
    """Byte strings, end to end: data (total,) uint8, offsets (count + 1,) int64 into it."""

    data: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, strings: Iterable[bytes]) -> "ByteStrings":
        """Pack `strings`; there may be none."""
        data, offsets = bytearray(), array("q", [0])
        for string in strings:
            data += string
            offsets.append(len(data))
        return cls(np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int64))

    def __len__(self) -> int:
        """Return the number of strings."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        """Return string `index`."""
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()


@dataclass(frozen=True)
class Segmentations:
    """COCO's `segmentation` values in the order of the file: polygons, run lengths, or nothing.

    coordinates: (total,) x y x y ..., original pixels; float64 as in the file, or float32, which
    takes half the memory. part_offsets: (parts + 1,) int64,
    where each polygon starts in them. object_offsets: (M + 1,) int64, where each object's polygons
    start in `part_offsets`. run_lengths: M of COCO's compressed counts, empty for polygons.
    """

    coordinates: np.ndarray
    part_offsets: np.ndarray
    object_offsets: np.ndarray
    run_lengths: ByteStrings

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.object_offsets) - 1

    def polygons(self, index: int) -> list[np.ndarray]:
        """Return the polygons of object `index`, each (2 * points,); none for an RLE."""
        first, last = self.object_offsets[index : index + 2]
        bounds = self.part_offsets[first : last + 1]
        return [self.coordinates[a:b] for a, b in pairwise(bounds)]

    def in_float32(self) -> "Segmentations":
        """Return the same with coordinates in float32."""
        return replace(self, coordinates=self.coordinates.astype(np.float32, copy=False))

    @property
    def are_there(self) -> np.ndarray:
        """(M,) bool: the object has a mask."""
        there: np.ndarray = np.diff(self.object_offsets) + np.diff(self.run_lengths.offsets) > 0
        return there


def _part_of(polygon: Any) -> "array[float] | None":
    """Return the coordinates of a polygon of three points or more; None: it is none.

    pycocotools would take a part of four numbers for a box.
    """
    try:
        part = array("d", polygon)
    except (TypeError, OverflowError):
        return None
    # NaN is never less
    is_good = len(part) >= 6 and len(part) % 2 == 0 and math.hypot(*part) < FARTHEST
    return part if is_good else None


def mask_fault(value: Any, size: Sequence[int]) -> str:
    """Return what is wrong with an unreadable `segmentation` value, for a message."""
    if isinstance(value, dict):
        try:
            code_of(value, size)
        except ValueError as error:
            return str(error)
    if not value:
        return "expected polygons or an RLE, got nothing"
    if isinstance(value, list) and all(isinstance(part, list) for part in value):
        return f"expected polygons of three points or more, got {value!r:.60}"
    return f"expected polygons or an RLE, got {value!r:.60}"


def check_masks(
    segmentations: Segmentations, rows: np.ndarray, is_crowd: np.ndarray, *, path: Path
) -> None:
    """Raise UserError where an object that is no crowd region has no mask.

    Args:
        segmentations: of the whole file.
        rows: (N,) int64, the objects' places in the file.
        is_crowd: (N,) bool of these objects.
        path: the file.
    """
    missing = rows[~segmentations.are_there[rows] & ~is_crowd]
    if len(missing):
        raise UserError(
            f"{path}: annotations[{missing.min()}]: segmentation: expected polygons or an RLE of "
            f"its image's size, got neither; so in {len(missing)} of {len(rows)} annotations"
        )


class SegmentationsBuilder:
    """Gathers `segmentation` values one by one."""

    def __init__(self) -> None:
        self.num_unreadable = 0
        self.num_dropped_parts = 0
        self._coordinates = array("d")
        self._part_offsets = array("q", [0])
        self._object_offsets = array("q", [0])
        self._run_lengths: list[bytes] = []

    def add(self, value: Any, size: Sequence[int]) -> None:
        """Take one object's value; what is neither polygons nor RLE is counted and left empty.

        Of several polygons those that are none are dropped and counted.

        Args:
            value: of the file.
            size: (height, width) of the image, which an RLE must fill.
        """
        run_lengths = b""
        try:
            if isinstance(value, dict):
                run_lengths = code_of(value, size)
            else:
                self._add_polygons(value or [])
        except (TypeError, ValueError):
            self.num_unreadable += 1
        self._run_lengths.append(run_lengths)
        self._object_offsets.append(len(self._part_offsets) - 1)

    def _add_polygons(self, polygons: list[list[float]]) -> None:
        parts = [_part_of(polygon) for polygon in polygons]
        good = [part for part in parts if part is not None]
        if parts and not good:
            raise ValueError("no part is a polygon")
        self.num_dropped_parts += len(parts) - len(good)
        for part in good:
            self._coordinates += part
            self._part_offsets.append(len(self._coordinates))

    def pack(self) -> Segmentations:
        """Return what was added."""
        return Segmentations(
            coordinates=np.frombuffer(self._coordinates, np.float64),
            part_offsets=np.frombuffer(self._part_offsets, np.int64),
            object_offsets=np.frombuffer(self._object_offsets, np.int64),
            run_lengths=ByteStrings.of(self._run_lengths),
        )
