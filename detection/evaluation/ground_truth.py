"""Ground truth for scoring, with the unchanged values of a COCO file.

N images, M annotations. Boxes are xywh and ids are the original ones, as in the file. Training uses
the clipped float32 boxes of `Annotations` instead.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detection.data.coco import Annotations
from detection.data.coco_json import AnnotationTable, ImageTable, check_any, int_of, read_tables
from detection.data.lvis_json import FederatedLabels
from detection.data.segmentations import check_masks
from detection.ops.rle import encode_window
from engine.errors import UserError


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a COCO file that are scored.

    path: the file. names: class names by category id, in ascending order. images: all images of the
    file. table: all annotations of the file. rows: (m,) int64, ascending rows of `table`: the
    scored objects. image_ids: (n,) int64, the scored images, ascending. with_masks: whether all
    objects have masks; a crowd region without one gets an empty one. federated: for LVIS's metric,
    None unless that was asked for.
    """

    path: Path
    names: dict[int, str]
    images: ImageTable
    table: AnnotationTable
    rows: np.ndarray
    image_ids: np.ndarray
    with_masks: bool
    federated: FederatedLabels | None = None

    @cached_property
    def places(self) -> dict[int, int]:
        """Row in `images` by image id."""
        return {image_id: place for place, image_id in enumerate(self.images.ids.tolist())}

    def size_of(self, image_id: int) -> list[int]:
        """Return [height, width] of an image; zeros if sizes were not read."""
        size: list[int] = self.images.sizes[self.places[image_id]].tolist()
        return size

    def file_name_of(self, image_id: int) -> str:
        """Return the file name of an image; empty if it has none."""
        return self.images.names[self.places[image_id]].decode()

    def within(self, image_ids: Iterable[int]) -> "GroundTruth":
        """Return the ground truth restricted to some images."""
        wanted = np.unique(np.array(list(image_ids), np.int64))
        rows = self.rows[np.isin(self.table.image_ids[self.rows], wanted)]
        return replace(self, rows=rows, image_ids=wanted)

    def rows_of(self, category_id: int) -> np.ndarray:
        """Return the rows in `table` of one category's scored objects, in file order."""
        rows: np.ndarray = self.rows[self.table.category_ids[self.rows] == category_id]
        return rows

    def of_category(self, category_id: int, *, with_masks: bool) -> list[dict[str, Any]]:
        """Return one category's objects in the form of pycocotools.

        Each call returns new dictionaries, because pycocotools writes into them. Ids start at 1,
        because pycocotools stores the id of a matched object and reads 0 as "no match".
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
        """Return the mask of the object at a row of `table`, as COCO's `segmentation`."""
        segmentations = self.table.segmentations
        code = segmentations.run_lengths[row]
        polygons = [part.tolist() for part in segmentations.polygons(row)]
        if polygons:
            return polygons
        height, width = self.size_of(int(self.table.image_ids[row]))
        if not code:  # a crowd region without a mask: an RLE of zeros
            nothing = np.zeros((0, 0), np.bool_)
            code = encode_window(nothing, top=0, left=0, size=(height, width))
        return {"size": [height, width], "counts": code}


def ground_truth_of(
    annotations: Annotations, *, with_masks: bool, federated: FederatedLabels | None = None
) -> GroundTruth:
    """Return the ground truth of annotations that were read for scoring.

    It has no objects that `on_bad_box` dropped. All others have the unchanged values of the file.

    Args:
        annotations: result of `read_coco` with `for_scoring`, and `need_masks` if masks are scored.
        with_masks: whether masks are scored.
        federated: for LVIS's metric.
    """
    assert annotations.table is not None, "expected annotations that were read for scoring"
    classes = annotations.classes
    return GroundTruth(
        path=annotations.path,
        names=dict(zip(classes.category_ids, classes.names, strict=True)),
        images=ImageTable(annotations.image_ids, annotations.file_names, annotations.sizes),
        table=annotations.table,
        # back to file order: ties between objects are then resolved as for the file itself
        rows=np.sort(annotations.rows_in_file),
        image_ids=np.sort(annotations.image_ids),
        with_masks=with_masks,
        federated=federated,
    )


def read_ground_truth(
    path: Path | str, *, with_masks: bool | Literal["if any"] = False
) -> GroundTruth:
    """Read a COCO file as ground truth for a results file; image names may be missing.

    Args:
        path: the file.
        with_masks: whether to read masks, which all objects except crowd regions must have.
            "if any": only if at least one annotation has a mask.

    Raises:
        UserError: the file cannot be read, is not a COCO file, or has no annotations.
    """
    path = Path(path)
    tables = read_tables(path, need_names=False, need_sizes=bool(with_masks) or "if any")
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
    """Raise UserError for the first annotation with an unknown id or an invalid number."""
    has_area = ~table.lacks_area
    # (4, M) bool, one row per kind of problem, in the order of `problems` below
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
    # the first bad annotation, then its first problem; argmax of bool is the first True
    row = int(bad.any(axis=0).argmax())
    problems = (
        f"image_id: expected one of {path}, got {table.image_ids[row]}",
        f"category_id: expected one of {path}, got {table.category_ids[row]}",
        f"bbox: expected finite numbers, got {table.xywh[row].tolist()}",
        f"area: expected a finite number of 0 or more, got {table.areas[row]}",
    )
    raise UserError(f"{path}: annotation {table.ids[row]}: {problems[int(bad[:, row].argmax())]}")


def known_id(entry: dict[str, Any], key: str, known: Container[int], path: Path, where: str) -> int:
    """Return the id under `key`, checked to be in `known`, the ids of the file `path`.

    The message of a UserError begins with `where`.
    """
    value = int_of(entry, key, where)
    if value not in known:
        raise UserError(f"{where}: {key}: expected one of {path}, got {value}")
    return value
