"""Repairs of images: sizes, and images that cannot be used."""

from collections.abc import Mapping

import numpy as np

from detection.data.box_checks import lie_inside
from detection.data.coco_json import image_name
from detection.datasets.check.changes import Changes, Repair, drop_all
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import Finding
from detection.datasets.check.run import Context
from detection.ops.boxes import xywh_to_xyxy


def _fill_size(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    entries = changes.document.lists["images"]
    for row in finding.rows.tolist():
        fact = (context.facts or {}).get(image_name(entries[row]) or "")
        if fact is None or fact.size is None:
            changes.drop("images", row, "its size is not known")
        else:
            set_size(changes, row, fact.size)


def _correct_size(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    """Take the file's size if all boxes of the image fit it; else drop the image."""
    places = dict(zip(columns.images.rows.tolist(), range(len(columns.images.rows)), strict=True))
    order = np.argsort(columns.image_places, kind="stable")
    ordered = columns.image_places[order]
    for row in finding.rows.tolist():
        at = places[row]
        fact = (context.facts or {})[columns.images.names[at]]
        assert fact.size is not None
        objects = order[slice(*np.searchsorted(ordered, [at, at + 1]))]
        boxes = xywh_to_xyxy(columns.annotations.xywh[objects])
        if lie_inside(boxes, np.tile(fact.size, (len(objects), 1))).all():
            set_size(changes, row, fact.size)
        else:
            changes.drop("images", row, "the boxes do not fit the size of the file")


def _drop_missing(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    """Drop the images, unless all are missing: then the folder is wrong, not the file."""
    if finding.count < len(columns.images.rows):
        drop_all(changes, finding, columns, context)


def set_size(changes: Changes, row: int, size: tuple[int, int]) -> None:
    """Set the (height, width) of the image in a row."""
    changes.set("images", row, "height", size[0])
    changes.set("images", row, "width", size[1])


SIZE_REPAIRS: Mapping[str, Repair] = {"image-name": drop_all, "image-size": _fill_size}
"""Without a name an image cannot be used, and without a size its boxes cannot be checked."""
IMAGE_REPAIRS: Mapping[str, Repair] = {
    "image-missing": _drop_missing,
    "image-damaged": drop_all,
    "image-other-size": _correct_size,
    "exif-ignored": _correct_size,
}
REFERENCE_REPAIRS: Mapping[str, Repair] = {"unknown-image": drop_all, "unknown-category": drop_all}
"""Also for the annotations of images that were dropped."""
