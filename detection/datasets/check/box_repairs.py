"""Repairs of boxes, areas and masks."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from detection.data.box_checks import MIN_SIDE
from detection.data.coco_json import image_name
from detection.data.segmentations import SegmentationsBuilder
from detection.datasets.check.changes import Changes, Repair, drop_all
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import Finding
from detection.datasets.check.run import Context


def polygons_of(entry: dict[str, Any]) -> list[np.ndarray]:
    """Return the polygons of an annotation, each (points, 2); none if it has no readable ones."""
    builder = SegmentationsBuilder()
    value = entry.get("segmentation")
    if isinstance(value, list):
        builder.add(value, (0, 0))
        return [each.reshape(-1, 2) for each in builder.pack().polygons(0)]
    return []


def mend_box(changes: Changes, row: int) -> None:
    """Set the box of the polygons; drop the annotation if there is none."""
    polygons = polygons_of(changes.document.lists["annotations"][row])
    if polygons:
        points = np.concatenate(polygons)
        near, far = points.min(axis=0), points.max(axis=0)
        if (far - near >= MIN_SIDE).all():
            changes.set("annotations", row, "bbox", [*near.tolist(), *(far - near).tolist()])
            return
    changes.drop("annotations", row, "its box cannot be used")


def mend_area(changes: Changes, row: int) -> None:
    """Set the area of the polygons, or of the box, which must be good."""
    entry = changes.document.lists["annotations"][row]
    polygons = polygons_of(entry)
    area = 0.0  # of a box that is bad, too, and is mended or dropped later
    with suppress(TypeError, ValueError):
        _, _, width, height = (float(value) for value in entry["bbox"])
        area = max(0.0, width * height)
    if polygons:
        area = min(sum(map(_polygon_area, polygons)), area)
    changes.set("annotations", row, "area", round(area, 2) if np.isfinite(area) else 0.0)


def _polygon_area(points: np.ndarray) -> float:
    """Return the area of a polygon (points, 2), by the shoelace formula."""
    following = np.roll(points, -1, axis=0)
    return 0.5 * abs(float(np.sum(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1])))


def _box_from_polygons(
    changes: Changes, finding: Finding, columns: Columns, context: Context
) -> None:
    for row in finding.rows.tolist():
        mend_box(changes, row)


def _areas(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    for row in finding.rows.tolist():
        mend_area(changes, row)


def _clip(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    sizes = dict(zip(columns.images.ids.tolist(), columns.images.sizes.tolist(), strict=True))
    entries = changes.document.lists["annotations"]
    for row in finding.rows.tolist():
        x, y, width, height = entries[row]["bbox"]
        image_height, image_width = sizes[entries[row]["image_id"]]
        near = max(x, 0), max(y, 0)
        far = min(x + width, image_width), min(y + height, image_height)
        clipped = [*near, far[0] - near[0], far[1] - near[1]]
        changes.set("annotations", row, "bbox", clipped)


def _multiply(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    sizes = dict(zip(columns.images.ids.tolist(), columns.images.sizes.tolist(), strict=True))
    entries = changes.document.lists["annotations"]
    for row in finding.rows.tolist():
        height, width = sizes[entries[row]["image_id"]]
        scaled = [a * b for a, b in zip(entries[row]["bbox"], (width, height) * 2, strict=True)]
        changes.set("annotations", row, "bbox", scaled)


def _convert_corners(
    changes: Changes, finding: Finding, columns: Columns, context: Context
) -> None:
    entries = changes.document.lists["annotations"]
    for row in finding.rows.tolist():
        x1, y1, x2, y2 = entries[row]["bbox"]
        changes.set("annotations", row, "bbox", [x1, y1, x2 - x1, y2 - y1])


def _swap_sides(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    """Swap width and height of the images of a finding, or of all images."""
    entries = changes.document.lists["images"]
    rows = finding.rows if finding.list_name == "images" else columns.images.rows
    for row in rows.tolist():
        height, width = entries[row].get("height"), entries[row].get("width")
        fact = (context.facts or {}).get(image_name(entries[row]) or "")
        if fact is not None and fact.size == (height, width):
            continue  # the boxes are wrong, not the size
        changes.set("images", row, "height", width)
        changes.set("images", row, "width", height)


def _fill_iscrowd(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    for row in finding.rows.tolist():
        changes.set("annotations", row, "iscrowd", 0)


def _empty_masks(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    for row in finding.rows.tolist():
        changes.set("annotations", row, "segmentation", [])


def _drop_mask_parts(
    changes: Changes, finding: Finding, columns: Columns, context: Context
) -> None:
    entries = changes.document.lists["annotations"]
    for row in finding.rows.tolist():
        kept = [each.ravel().tolist() for each in polygons_of(entries[row])]
        changes.set("annotations", row, "segmentation", kept)


SYSTEMATIC_REPAIRS: Mapping[str, Repair] = {
    "boxes-normalised": _multiply,
    "boxes-xyxy": _convert_corners,
    "boxes-swapped": _swap_sides,
    "sides-swapped": _swap_sides,
}
BOX_REPAIRS: Mapping[str, Repair] = {
    "box-not-finite": _box_from_polygons,
    "box-without-size": _box_from_polygons,
    "box-outside": drop_all,
    "box-clipped": _clip,
    "duplicate-box": drop_all,
}
MASK_REPAIRS: Mapping[str, Repair] = {
    "mask-unreadable": _empty_masks,
    "mask-parts": _drop_mask_parts,
    "area-impossible": _areas,
    "area-misfit": _areas,
    "area-missing": _areas,
    "iscrowd-missing": _fill_iscrowd,
}
"""Masks and what is computed from them and from good boxes."""
