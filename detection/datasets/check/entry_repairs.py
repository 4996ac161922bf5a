"""Repairs of single keys, of ids and of class names."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from detection.data.coco_json import has_control_characters, image_name, is_number
from detection.datasets.check.box_repairs import mend_area, mend_box
from detection.datasets.check.changes import Changes, Repair, drop_all
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import Finding
from detection.datasets.check.run import Context


def integer_of(value: Any) -> int | None:
    """Return the integer that a JSON value stands for ("12", 12.0), else None."""
    with suppress(ValueError, OverflowError):
        if isinstance(value, str) or (isinstance(value, float) and value == int(value)):
            value = int(value)
    return value if type(value) is int and abs(value) < 2**63 else None


def _new_ids(changes: Changes, list_name: str) -> int:
    """Return the first id above all integers that the list has as ids."""
    entries = changes.document.lists[list_name]
    found = (entries[row] for row in entries.rows())
    ids = [integer_of(entry.get("id")) for entry in found if isinstance(entry, dict)]
    return max([0, *(each for each in ids if each is not None and each < 2**62)]) + 1


def _mend_ids(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    """Convert ids, or give new ones, and change the annotations that have the old id."""
    list_name = finding.list_name
    key = {"images": "image_id", "categories": "category_id"}.get(list_name)
    entries, fresh = changes.document.lists[list_name], _new_ids(changes, list_name)
    renamed: dict[str, int] = {}
    for row in finding.rows.tolist():
        old = entries[row].get("id")
        new = integer_of(old)
        if new is None:
            new, fresh = fresh, fresh + 1
            if old is not None:
                renamed.setdefault(repr(old), new)
        changes.set(list_name, row, "id", new)
    if not renamed or key is None:
        return
    annotations = changes.document.lists["annotations"]
    for row in annotations.rows():
        entry = annotations[row]
        if isinstance(entry, dict) and repr(entry.get(key)) in renamed:
            changes.set("annotations", row, key, renamed[repr(entry[key])])


def _convert_reference(
    changes: Changes, finding: Finding, columns: Columns, context: Context
) -> None:
    key = finding.code.removeprefix("annotation-").replace("-", "_")
    entries = changes.document.lists["annotations"]
    for row in finding.rows.tolist():
        # ids of images and categories were converted before
        value = integer_of(entries[row].get(key))
        if value is None:
            changes.drop("annotations", row, f"{key}: {entries[row].get(key)!r:.60}")
        else:
            changes.set("annotations", row, key, value)


def _convert_box(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    entries = changes.document.lists["annotations"]
    for row in finding.rows.tolist():
        box = entries[row].get("bbox")
        numbers = [_number_of(value) for value in box] if isinstance(box, list) else []
        if len(numbers) == 4 and all(number is not None for number in numbers):
            changes.set("annotations", row, "bbox", numbers)
        else:
            mend_box(changes, row)


def _number_of(value: Any) -> float | None:
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value if is_number(value) else None


def _mend_malformed_area(
    changes: Changes, finding: Finding, columns: Columns, context: Context
) -> None:
    entries = changes.document.lists["annotations"]
    for row in finding.rows.tolist():
        value = _number_of(entries[row].get("area"))
        if value is None:
            mend_area(changes, row)
        else:
            changes.set("annotations", row, "area", value)


def _mend_flags(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    entries = changes.document.lists["annotations"]
    for row in finding.rows.tolist():
        for key in ("iscrowd", "difficult", "ignore"):
            value = entries[row].get(key)
            if value not in (0, 1, None):
                converted = {"0": 0, "1": 1, "false": 0, "true": 1}.get(str(value).lower(), 0)
                changes.set("annotations", row, key, converted)


def _name_classes(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    entries = changes.document.lists["categories"]
    for row in finding.rows.tolist():
        name, key = entries[row].get("name"), entries[row].get("id")
        text = str(name) if isinstance(name, str | int | float) else ""
        kept = (" " if has_control_characters(each) else each for each in text)
        clean = " ".join("".join(kept).split())
        changes.set("categories", row, "name", clean or f"class_{key}")


def _make_categories(
    changes: Changes, finding: Finding, columns: Columns, context: Context
) -> None:
    for key in sorted(set(columns.annotations.category_ids.tolist())):
        changes.append("categories", {"id": key, "name": f"class_{key}"})


def _renumber(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    """Give new ids to entries that repeat one; drop images and categories that are equal."""
    list_name = finding.list_name
    entries, fresh = changes.document.lists[list_name], _new_ids(changes, list_name)
    first: dict[Any, Any] = {}
    repeats = set(finding.rows.tolist())
    has_name = list_name in ("images", "categories")
    if has_name:
        for row in entries.rows():
            if isinstance(entries[row], dict):
                first.setdefault(repr(entries[row].get("id")), _name_in(list_name, entries[row]))
    for row in sorted(repeats):
        entry = entries[row]
        if has_name and first[repr(entry["id"])] == _name_in(list_name, entry):
            changes.drop(list_name, row, "it repeats another entry")
            continue
        changes.set(list_name, row, "id", fresh)
        fresh += 1


def _name_in(list_name: str, entry: dict[str, Any]) -> Any:
    """Return the name of an image or a category; None if it has none."""
    return image_name(entry) if list_name == "images" else entry.get("name")


def _join_classes(changes: Changes, finding: Finding, columns: Columns, context: Context) -> None:
    """Move the objects of classes that repeat a name to the first of that name."""
    repeats = set(finding.rows.tolist())
    first = {name: key for row, key, name in reversed(columns.categories) if row not in repeats}
    moved = {key: first[name] for row, key, name in columns.categories if row in repeats}
    table, rows = columns.annotations, columns.annotation_rows.tolist()
    for row, key in zip(rows, table.category_ids.tolist(), strict=True):
        if key in moved:
            changes.set("annotations", row, "category_id", moved[key])
    drop_all(changes, finding, columns, context)


ENTRY_REPAIRS: Mapping[str, Repair] = {
    "image-not-object": drop_all,
    "annotation-not-object": drop_all,
    "category-not-object": drop_all,
    "image-id": _mend_ids,
    "category-id": _mend_ids,
    "annotation-id": _mend_ids,
    "annotation-image-id": _convert_reference,
    "annotation-category-id": _convert_reference,
    "category-name": _name_classes,
    "box-malformed": _convert_box,
    "area-malformed": _mend_malformed_area,
    "flag-malformed": _mend_flags,
}
"""Repairs of entries that cannot be read, in their order."""
ID_REPAIRS: Mapping[str, Repair] = {
    "no-categories": _make_categories,
    "repeated-image-id": _renumber,
    "repeated-category-id": _renumber,
    "repeated-annotation-id": _renumber,
    "repeated-category-name": _join_classes,
}
