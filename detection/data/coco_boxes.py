"""Parser of COCO JSON files for callers that need boxes and no masks: a third of the time.

M annotations.
"""

from itertools import chain
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
    without_garbage_collection,
)
from detection.data.segmentations import ByteStrings, Segmentations
from engine import paths

_Flag = int | bool | None


class _Annotation(msgspec.Struct, gc=False):
    """The keys that are decoded. The others, with the polygons, are skipped as text."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
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
    try:
        document = msgspec.json.decode(data, type=_Document)
        columns = _columns_of(document.annotations)
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError, _OddValueError):
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
    integers = {
        name: np.fromiter((getattr(each, name) for each in found), np.int64, count)
        for name in ("id", "image_id", "category_id")
    }
    flags = {
        # 2: no value
        name: np.fromiter((_code_of(getattr(each, name)) for each in found), np.int8, count)
        for name in ("iscrowd", "difficult", "ignore")
    }
    flat = chain.from_iterable(each.bbox for each in found)
    xywh = np.fromiter(flat, np.float64, 4 * count).reshape(-1, 4)
    nothing = float("nan")  # JSON has no NaN, so no area of the file is one
    areas = np.fromiter(
        (nothing if each.area is None else each.area for each in found), np.float64, count
    )
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
        lacks_iscrowd=flags["iscrowd"] == 2,
        unreadable_masks=0,
        dropped_mask_parts=0,
        segmentations=Segmentations(
            coordinates=np.zeros(0),
            part_offsets=np.zeros(1, np.int64),
            object_offsets=np.zeros(count + 1, np.int64),
            run_lengths=ByteStrings(np.zeros(0, np.uint8), np.zeros(count + 1, np.int64)),
        ),
    )


def _code_of(flag: _Flag) -> int:
    """Return 0, 1, or 2 for no value."""
    if flag is None:
        return 2
    if flag not in (0, 1):
        raise _OddValueError
    return int(flag)
