"""Ragged data in a few flat arrays.

Worker processes share the pages of an array for as long as nobody writes to them, while each look
at a Python object writes its reference count and so copies its page: lists of a million small
objects make the memory of workers grow over an epoch.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


@dataclass(frozen=True)
class PackedBytes:
    """Byte strings, end to end: data (total,) uint8, offsets (count + 1,) int64 into it."""

    data: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, strings: Iterable[bytes]) -> "PackedBytes":
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

    coordinates: (total,) float32 x y x y ..., original pixels. part_offsets: (parts + 1,) int64,
    where each polygon starts in them. object_offsets: (M + 1,) int64, where each object's polygons
    start in `part_offsets`. run_lengths: M of COCO's compressed counts, empty for polygons.
    """

    coordinates: np.ndarray
    part_offsets: np.ndarray
    object_offsets: np.ndarray
    run_lengths: PackedBytes

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.object_offsets) - 1

    def polygons(self, index: int) -> list[np.ndarray]:
        """Return the polygons of object `index`, each (2 * points,) float32; none for an RLE."""
        first, last = self.object_offsets[index : index + 2]
        bounds = self.part_offsets[first : last + 1]
        return [self.coordinates[a:b] for a, b in pairwise(bounds)]


class SegmentationPacker:
    """Gathers `segmentation` values one by one."""

    def __init__(self) -> None:
        self.num_unreadable = 0
        self._coordinates = array("f")
        self._part_offsets = array("q", [0])
        self._object_offsets = array("q", [0])
        self._run_lengths: list[bytes] = []

    def add(self, value: Any) -> None:
        """Take one object's value; what is neither polygons nor RLE is counted and left empty."""
        run_lengths = b""
        try:
            if isinstance(value, dict):
                run_lengths = _compressed_counts(value)
            else:
                self._add_polygons(value or [])
        except (KeyError, TypeError, ValueError, OverflowError):
            self.num_unreadable += 1
        self._run_lengths.append(run_lengths)
        self._object_offsets.append(len(self._part_offsets) - 1)

    def _add_polygons(self, polygons: list[list[float]]) -> None:
        parts = [array("f", polygon) for polygon in polygons]
        if any(len(part) < 6 or len(part) % 2 for part in parts):
            raise ValueError("a polygon has three points or more")
        for part in parts:
            self._coordinates += part
            self._part_offsets.append(len(self._coordinates))

    def pack(self) -> Segmentations:
        """Return what was added."""
        return Segmentations(
            coordinates=np.frombuffer(self._coordinates, np.float32),
            part_offsets=np.frombuffer(self._part_offsets, np.int64),
            object_offsets=np.frombuffer(self._object_offsets, np.int64),
            run_lengths=PackedBytes.of(self._run_lengths),
        )


def _compressed_counts(value: dict[str, Any]) -> bytes:
    """Return the counts of an RLE in COCO's compressed form."""
    counts = value["counts"]
    if isinstance(counts, str):
        return counts.encode()
    height, width = value["size"]
    packed: bytes = coco_mask.frPyObjects(value, height, width)["counts"]
    return packed
