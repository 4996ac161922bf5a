"""Parser of COCO JSON files for callers that need boxes and no masks: a third of the time.

M annotations.
"""

import math
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detection.data.coco_json import (
    AnnotationTable,
    Tables,
    check_unique,
    read_categories,
    read_images,
    read_tables,
)
from detection.data.json_files import without_garbage_collection
from detection.data.segmentations import ByteStrings, Segmentations
from engine import paths

_Flag = int | bool | None
_NO_VALUE = 2
_CODES: dict[_Flag, int] = {0: 0, 1: 1, None: _NO_VALUE}  # true and false equal 1 and 0


class _Annotation(msgspec.Struct, gc=False):
    """The keys that are decoded. The others, with the polygons, are skipped as text."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float = math.nan  # JSON has no NaN, so this is no file's value
    iscrowd: _Flag = None
    difficult: _Flag = None
    ignore: _Flag = None


class _Document(msgspec.Struct):
    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[_Annotation] = []


@without_garbage_collection()
def read_box_tables(path: Path) -> Tables:
    """Return what `read_tables` returns, but without segmentations: every object has none.

    Raises:
        UserError: as for `read_tables`.
    """
    data = paths.read_bytes(path)
    try:  # KeyError: a flag that is not 0 or 1
        document = msgspec.json.decode(data, type=_Document)
        columns = _columns_of(document.annotations)
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, KeyError, _OddValueError):
        # The slow reader decides what is accepted, and says what is wrong.
        return read_tables(path)
    del data
    categories = read_categories(document.categories, path)
    images = read_images(document.images, path)
    check_unique(columns.ids, "annotation ids", path)
    return Tables(categories, images, columns)


class _OddValueError(Exception):
    """A value that the slow reader may refuse."""


def _columns_of(found: list[_Annotation]) -> AnnotationTable:
    count = len(found)

    def column(name: str) -> Iterator[Any]:
        return map(attrgetter(name), found)

    # map in place of comprehensions: half the time
    integers = {
        name: np.fromiter(column(name), np.int64, count)
        for name in ("id", "image_id", "category_id")
    }
    flags = {
        name: np.fromiter(map(_CODES.__getitem__, column(name)), np.int8, count)
        for name in ("iscrowd", "difficult", "ignore")
    }
    flat = chain.from_iterable(column("bbox"))
    xywh = np.fromiter(flat, np.float64, 4 * count).reshape(-1, 4)
    areas = np.fromiter(column("area"), np.float64, count)
    lacks_area = np.isnan(areas)
    if (np.abs(xywh) >= 2.0**63).any() or (np.abs(areas) >= 2.0**63).any():
        raise _OddValueError
    return AnnotationTable(
        ids=integers["id"],
        image_ids=integers["image_id"],
        category_ids=integers["category_id"],
        xywh=xywh,
        areas=np.where(lacks_area, xywh[:, 2] * xywh[:, 3], areas),
        is_crowd=flags["iscrowd"] == 1,
        is_difficult=flags["difficult"] == 1,
        is_ignored=flags["ignore"] == 1,
        lacks_area=lacks_area,
        lacks_iscrowd=flags["iscrowd"] == _NO_VALUE,
        unreadable_masks=0,
        dropped_mask_parts=0,
        segmentations=Segmentations(
            coordinates=np.zeros(0),
            part_offsets=np.zeros(1, np.int64),
            object_offsets=np.zeros(count + 1, np.int64),
            run_lengths=ByteStrings(np.zeros(0, np.uint8), np.zeros(count + 1, np.int64)),
        ),
    )
