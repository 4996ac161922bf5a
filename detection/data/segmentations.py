"""Segmentations of a COCO file (polygons and RLE) and byte strings, stored in flat arrays.

Forked worker processes share memory pages until one of them writes. Reading a Python object writes
its reference count and so copies its page: with lists of a million small objects, the memory of the
workers grows over an epoch. Arrays have one reference count each, so their pages stay shared.
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
"""Maximum norm of a polygon's coordinates: up to here, float32 represents every integer."""


@dataclass(frozen=True)
class ByteStrings:
    """Concatenated byte strings: string i is `data[offsets[i]:offsets[i + 1]]`.

    data: (total,) uint8. offsets: (count + 1,) int64, from 0 to the total length.
    """

    data: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, strings: Iterable[bytes]) -> "ByteStrings":
        """Concatenate `strings`, which may be empty."""
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
    """COCO's `segmentation` values in file order: polygons, run lengths, or nothing.

    Two levels of offsets: object i has the polygons object_offsets[i] to object_offsets[i + 1] - 1,
    and polygon j is coordinates[part_offsets[j]:part_offsets[j + 1]].

    coordinates: (total,) x y x y ..., original pixels; float64 as in the file, or float32, which
    takes half the memory. part_offsets: (parts + 1,) int64. object_offsets: (M + 1,) int64.
    run_lengths: M strings, COCO's compressed `counts`; empty for polygons.
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
        # one more offset than polygons: the end of the last one
        first, last = self.object_offsets[index : index + 2]
        bounds = self.part_offsets[first : last + 1]
        return [self.coordinates[a:b] for a, b in pairwise(bounds)]

    def in_float32(self) -> "Segmentations":
        """Return a copy with coordinates in float32; no copy if they already are."""
        return replace(self, coordinates=self.coordinates.astype(np.float32, copy=False))

    @property
    def are_there(self) -> np.ndarray:
        """(M,) bool, whether each object has a mask."""
        # number of polygons + length of the RLE string
        there: np.ndarray = np.diff(self.object_offsets) + np.diff(self.run_lengths.offsets) > 0
        return there


def _polygon_of(polygon: Any) -> "array[float] | None":
    """Return the coordinates of a polygon of at least three points, None if it is not one.

    pycocotools would read a part of four numbers as a box.
    """
    try:
        part = array("d", polygon)
    except (TypeError, OverflowError):
        return None
    # a NaN or an infinity fails the comparison too
    is_good = len(part) >= 6 and len(part) % 2 == 0 and math.hypot(*part) < FARTHEST
    return part if is_good else None


def mask_fault(value: Any, size: Sequence[int]) -> str:
    """Describe an unreadable `segmentation` value for an error message."""
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
    """Raise UserError if an object other than a crowd region has no mask.

    Args:
        segmentations: segmentations of the whole file.
        rows: (N,) int64, positions of the objects in the file.
        is_crowd: (N,) bool of these objects.
        path: the file, for the message.
    """
    missing = rows[~segmentations.are_there[rows] & ~is_crowd]
    if len(missing):
        raise UserError(
            f"{path}: annotations[{missing.min()}]: segmentation: expected polygons or an RLE of "
            f"its image's size, got neither ({len(missing)} of {len(rows)} annotations)"
        )


class SegmentationsBuilder:
    """Collects `segmentation` values one by one and builds `Segmentations`."""

    def __init__(self) -> None:
        self.num_unreadable = 0
        self.num_dropped_parts = 0
        # typed arrays: "d" float64, "q" int64; offsets start with the 0 before the first entry
        self._coordinates = array("d")
        self._part_offsets = array("q", [0])
        self._object_offsets = array("q", [0])
        self._run_lengths: list[bytes] = []

    def add(self, value: Any, size: Sequence[int]) -> None:
        """Add the value of one object; one that is neither polygons nor RLE is counted as empty.

        Parts of a list that are not polygons are dropped and counted, if at least one is.

        Args:
            value: `segmentation` of the file.
            size: (height, width) of the image, which must be the size of an RLE.
        """
        run_lengths = b""
        try:
            if isinstance(value, dict):
                run_lengths = code_of(value, size)
            else:
                self._add_polygons(value or [])
        except (TypeError, ValueError):
            self.num_unreadable += 1
        # Every object gets an entry in both, so that rows stay aligned with the file's annotations.
        # len(part_offsets) - 1 is the number of polygons so far.
        self._run_lengths.append(run_lengths)
        self._object_offsets.append(len(self._part_offsets) - 1)

    def _add_polygons(self, polygons: list[list[float]]) -> None:
        parts = [_polygon_of(polygon) for polygon in polygons]
        good = [part for part in parts if part is not None]
        if parts and not good:
            raise ValueError("no part is a polygon")  # counted by `add`
        self.num_dropped_parts += len(parts) - len(good)
        for part in good:
            self._coordinates += part
            self._part_offsets.append(len(self._coordinates))

    def pack(self) -> Segmentations:
        """Return the segmentations added so far."""
        return Segmentations(
            coordinates=np.frombuffer(self._coordinates, np.float64),
            part_offsets=np.frombuffer(self._part_offsets, np.int64),
            object_offsets=np.frombuffer(self._object_offsets, np.int64),
            run_lengths=ByteStrings.of(self._run_lengths),
        )
