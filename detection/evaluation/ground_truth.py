"""Ground truth of a COCO file for scoring: the values of the file that training reads its boxes of.

N images, M annotations. Boxes are xywh here, as in the file, and ids are the file's own.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detection.data.coco import Annotations
from detection.data.coco_json import AnnotationTable, ImageTable, check_any, int_of, read_tables
from detection.data.segmentations import check_masks
from detection.ops.rle import encode_window
from engine.errors import UserError


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a COCO file, as far as scoring needs them.

    path: of the file. names: by rising category id. images: all of the file. table: all annotations
    of the file. rows: (m,) int64, places in `table` of the objects that are scored, rising.
    image_ids: (n,) int64, the images that are scored, rising. with_masks: whether all objects have
    masks; a crowd region without one then has an empty one.
    """

    path: Path
    names: dict[int, str]
    images: ImageTable
    table: AnnotationTable
    rows: np.ndarray
    image_ids: np.ndarray
    with_masks: bool

    @cached_property
    def places(self) -> dict[int, int]:
        """Place in `images` of each image of the file, by its id."""
        return {image_id: place for place, image_id in enumerate(self.images.ids.tolist())}

    def size_of(self, image_id: int) -> list[int]:
        """Return [height, width] of an image; zeros where sizes were not read."""
        size: list[int] = self.images.sizes[self.places[image_id]].tolist()
        return size

    def file_name_of(self, image_id: int) -> str:
        """Return the file name of an image; empty where it has none."""
        return self.images.names[self.places[image_id]].decode()

    def within(self, image_ids: Iterable[int]) -> "GroundTruth":
        """Return the objects in some of the images, which alone are scored."""
        wanted = np.unique(np.array(list(image_ids), np.int64))
        rows = self.rows[np.isin(self.table.image_ids[self.rows], wanted)]
        return replace(self, rows=rows, image_ids=wanted)

    def rows_of(self, category_id: int) -> np.ndarray:
        """Return the places in `table` of one category's objects, in the order of the file."""
        rows: np.ndarray = self.rows[self.table.category_ids[self.rows] == category_id]
        return rows

    def of_category(self, category_id: int, *, with_masks: bool) -> list[dict[str, Any]]:
        """Return one category's objects as pycocotools wants them, new ones at each call.

        pycocotools writes into them. It takes an object with id 0 for an unmatched one, so that ids
        count from 1.
        """
        table, rows = self.table, self.rows_of(category_id)
        columns = (table.image_ids[rows], table.xywh[rows], table.areas[rows], table.is_crowd[rows])
        return [
            {
                "id": row + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": area,
                "iscrowd": int(is_crowd),
                **({"segmentation": self.segmentation_of(row)} if with_masks else {}),
            }
            for row, image_id, box, area, is_crowd in zip(
                rows.tolist(), *(column.tolist() for column in columns), strict=True
            )
        ]

    def segmentation_of(self, row: int) -> Any:
        """Return the mask of the object at a place in `table`, in COCO's form."""
        segmentations = self.table.segmentations
        code = segmentations.run_lengths[row]
        polygons = [part.tolist() for part in segmentations.polygons(row)]
        if polygons:
            return polygons
        height, width = self.size_of(int(self.table.image_ids[row]))
        if not code:
            nothing = np.zeros((0, 0), np.bool_)
            code = encode_window(nothing, top=0, left=0, size=(height, width))
        return {"size": [height, width], "counts": code}


def ground_truth_of(annotations: Annotations, *, with_masks: bool) -> GroundTruth:
    """Return what detections are scored against, from annotations that were read for scoring.

    Objects that a stated policy dropped are not among them; all others have the values of the file.

    Args:
        annotations: of `read_coco` with `for_scoring`, and with `need_masks` where masks count.
        with_masks: whether masks are scored.
    """
    assert annotations.table is not None, "annotations that were not read for scoring"
    classes = annotations.classes
    return GroundTruth(
        path=annotations.path,
        names=dict(zip(classes.category_ids, classes.names, strict=True)),
        images=ImageTable(annotations.image_ids, annotations.file_names, annotations.sizes),
        table=annotations.table,
        rows=np.sort(annotations.rows_in_file),
        image_ids=np.sort(annotations.image_ids),
        with_masks=with_masks,
    )


def read_ground_truth(
    path: Path | str, *, with_masks: bool | Literal["if any"] = False
) -> GroundTruth:
    """Read a COCO file to score results against; no image of it is needed, nor its name.

    Args:
        path: the file, which is not changed.
        with_masks: read masks too, which all but crowd regions must have. "if any": not where no
            annotation has one.

    Raises:
        UserError: the file cannot be read, is not of COCO's shape, or has nothing to find.
    """
    path = Path(path)
    tables = read_tables(path, need_names=False, need_sizes=bool(with_masks))
    images, table = tables.images, tables.annotations
    rows = np.arange(len(table.ids))
    check_any(len(rows), "to score against", path)
    if with_masks == "if any":
        with_masks = bool(table.segmentations.are_there.any())
    if with_masks:
        check_masks(table.segmentations, rows, table.is_crowd, path=path)
    names = dict(tables.categories)
    _check_values(table, images.ids, np.array(list(names)), path)
    return GroundTruth(path, names, images, table, rows, np.sort(images.ids), with_masks)


def _check_values(
    table: AnnotationTable, image_ids: np.ndarray, category_ids: np.ndarray, path: Path
) -> None:
    """Raise UserError for the first annotation that cannot be scored against."""
    has_area = ~table.lacks_area
    bad = np.stack(
        [
            ~np.isin(table.image_ids, image_ids),
            ~np.isin(table.category_ids, category_ids),
            ~np.isfinite(table.xywh).all(axis=1),
            has_area & ~(np.isfinite(table.areas) & (table.areas >= 0)),
        ]
    )
    if not bad.any():
        return
    row = int(bad.any(axis=0).argmax())
    problems = (
        f"image_id: expected one of {path}, got {table.image_ids[row]}",
        f"category_id: expected one of {path}, got {table.category_ids[row]}",
        f"bbox: expected finite numbers, got {table.xywh[row].tolist()}",
        f"area: expected a finite number of 0 or more, got {table.areas[row]}",
    )
    raise UserError(f"{path}: annotation {table.ids[row]}: {problems[int(bad[:, row].argmax())]}")


def known_id(entry: dict[str, Any], key: str, known: Container[int], path: Path, where: str) -> int:
    """Return the id under `key`, one of those that `path` knows; UserError begins with `where`."""
    value = int_of(entry, key, where)
    if value not in known:
        raise UserError(f"{where}: {key}: expected one of {path}, got {value}")
    return value
