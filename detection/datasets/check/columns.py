"""Tolerant reader of a COCO file: columns of all entries that can be read, and all other entries.

N images, M annotations, K categories that can be read. What counts as readable is decided by the
functions of `detection.data.coco_json`, which the training reader uses.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detection.data.coco_json import (
    AnnotationTable,
    area_of,
    box_of,
    class_name_of,
    flag_of,
    image_name,
    image_name_of,
    int_of,
    read_annotations,
    size_of,
)
from detection.data.json_files import without_garbage_collection
from detection.datasets.check.document import Document, Entries
from engine.errors import UserError

Checks = Mapping[str, Callable[[dict[str, Any], str], object]]
"""By the code of the finding: a function of the reader that raises UserError."""


def _flags_of(entry: dict[str, Any], where: str) -> None:
    for key in ("iscrowd", "difficult", "ignore"):
        flag_of(entry, key, where)


IMAGE_CHECKS: Checks = {
    "image-id": lambda entry, where: int_of(entry, "id", where),
    "image-name": image_name_of,
    "image-size": size_of,
}
CATEGORY_CHECKS: Checks = {
    "category-id": lambda entry, where: int_of(entry, "id", where),
    "category-name": class_name_of,
}
ANNOTATION_CHECKS: Checks = {
    "annotation-id": lambda entry, where: int_of(entry, "id", where),
    "annotation-image-id": lambda entry, where: int_of(entry, "image_id", where),
    "annotation-category-id": lambda entry, where: int_of(entry, "category_id", where),
    "box-malformed": box_of,
    "area-malformed": area_of,
    "flag-malformed": _flags_of,
}

_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}

Faults = dict[tuple[str, str], list[tuple[int, str]]]
"""By (code, list): the row of each entry with this fault, and what is wrong."""


@dataclass(frozen=True)
class ImageColumns:
    """Images that have an id.

    rows: (N,) positions in the file. names: "" if there is none. sizes: (N, 2) height and width,
    (0, 0) if they are not possible.
    """

    rows: np.ndarray
    ids: np.ndarray
    names: list[str]
    sizes: np.ndarray


@dataclass(frozen=True)
class Columns:
    """What can be read of a file.

    categories: (row in the file, id, name). annotation_rows: (M,) positions in the file.
    image_places: (M,) place of each annotation's image in `images`, -1 if there is none; the first
    of several images with one id. labels: (M,) place of its category in `categories`, -1 if there
    is none. faults: of all entries that cannot be read.
    """

    document: Document
    images: ImageColumns
    categories: list[tuple[int, int, str]]
    annotations: AnnotationTable
    annotation_rows: np.ndarray
    image_places: np.ndarray
    labels: np.ndarray
    faults: Faults = field(default_factory=dict)

    @property
    def are_sized(self) -> np.ndarray:
        """(M,) bool, annotations whose image is in the file and has a possible size."""
        are_sized = self.image_places >= 0
        are_sized[are_sized] = self.images.sizes[self.image_places[are_sized], 0] > 0
        return are_sized

    @property
    def names(self) -> list[str]:
        """The K class names."""
        return [name for _, _, name in self.categories]


@without_garbage_collection()
def read_columns(document: Document) -> Columns:
    """Read all entries of `document`.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError: see `read_document`.
    """
    faults: Faults = defaultdict(list)
    images = _read_images(document.lists["images"], faults)
    categories = _read_categories(document.lists["categories"], faults)
    sizes = dict(zip(images.ids.tolist(), images.sizes.tolist(), strict=True))
    entries = document.lists["annotations"]
    rows = entries.rows()
    bad: list[int] = []
    table = read_annotations(
        _objects_of(entries, rows), document.path, sizes=sizes, skip=bad.append
    )
    for place in bad:
        _note_faults(entries, rows[place], "annotations", ANNOTATION_CHECKS, faults)
    return Columns(
        document=document,
        images=images,
        categories=categories,
        annotations=table,
        annotation_rows=np.delete(np.array(rows, np.int64), bad),
        image_places=_places_of(table.image_ids, images.ids),
        labels=_places_of(table.category_ids, np.array([key for _, key, _ in categories])),
        faults=faults,
    )


def _read_images(entries: Entries, faults: Faults) -> ImageColumns:
    rows, ids, names, sizes = [], [], [], []
    for row in entries.rows():
        codes, entry = _note_faults(entries, row, "images", IMAGE_CHECKS, faults)
        if "image-id" not in codes:
            rows.append(row)
            ids.append(entry["id"])
            names.append(image_name(entry) or "")
            is_sized = "image-size" not in codes
            sizes.append((entry["height"], entry["width"]) if is_sized else (0, 0))
    return ImageColumns(
        np.array(rows, np.int64),
        np.array(ids, np.int64),
        names,
        np.array(sizes, np.int64).reshape(-1, 2),
    )


def _read_categories(entries: Entries, faults: Faults) -> list[tuple[int, int, str]]:
    found = []
    for row in entries.rows():
        codes, entry = _note_faults(entries, row, "categories", CATEGORY_CHECKS, faults)
        if "category-id" not in codes:
            name = "" if "category-name" in codes else entry["name"]
            found.append((row, entry["id"], name or f"class_{entry['id']}"))
    return found


def _objects_of(entries: Entries, rows: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the entries; an empty object, which is refused, for what is not an object."""
    for row in rows:
        entry = entries[row]
        yield entry if isinstance(entry, dict) else {}


def _note_faults(
    entries: Entries, row: int, list_name: str, checks: Checks, faults: Faults
) -> tuple[set[str], dict[str, Any]]:
    """Add the faults of one entry to `faults`; return their codes, and the entry."""
    entry = entries[row]
    if not isinstance(entry, dict):
        code = f"{_SINGULAR[list_name]}-not-object"
        faults[code, list_name].append((row, f"expected an object, got {entry!r:.60}"))
        return {*checks}, {}
    codes = set()
    for code, check in checks.items():
        try:
            check(entry, "")
        except UserError as error:
            codes.add(code)
            faults[code, list_name].append((row, str(error).removeprefix(": ")))
    return codes, entry


def _places_of(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the first place of each of `values` (n,) in `keys`, -1 where it is not: (n,) int64."""
    if not len(keys):
        return np.full(len(values), -1, np.int64)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    # side="left": the first of equal keys, which the stable sort keeps in file order
    at = np.searchsorted(ordered, values).clip(max=len(keys) - 1)
    places: np.ndarray = np.where(ordered[at] == values, order[at], -1)
    return places
