"""What COCO scoring needs: an annotation file's objects, and detections packed to meet them.

M detections. Boxes are xywh here, as in the files, and ids are the files' own.
"""

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pycocotools import mask as mask_codec

from detection.data.coco import ClassMap
from detection.data.coco_json import (
    check_any,
    check_unique,
    int_of,
    parse_coco,
    read_annotations,
    read_categories,
    size_of,
    without_garbage_collection,
)
from detection.data.packed import Segmentations, check_masks, good_polygons
from detection.ops.boxes import xyxy_to_xywh
from detection.ops.rle import encode_window
from detection.structures import RunLengthMasks
from engine.errors import UserError

IoUType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Truth:
    """A COCO annotation file, as far as scoring needs it.

    images: by image id. names: by rising category id. objects: by category id, annotations with
    `area` (width times height of the box), `iscrowd` and `difficult` (0) filled in, and with ids
    from 1, because pycocotools takes an object with id 0 for an unmatched one; `filled` is what of
    COCO's an object lacked. with_masks: whether masks were read; a crowd region without one then
    has an empty one.
    """

    path: Path
    images: dict[int, dict[str, Any]]
    names: dict[int, str]
    objects: dict[int, list[dict[str, Any]]]
    with_masks: bool


@without_garbage_collection()
def read_truth(
    path: Path | str,
    *,
    kept_rows: Iterable[int] | None = None,
    with_masks: bool | Literal["if any"] = False,
    need_objects: bool = True,
) -> Truth:
    """Read a COCO annotation file for scoring; the file itself is not changed.

    Args:
        path: the file.
        kept_rows: places of the annotations that count, in the order of the file; None: all. Bad
            boxes that a stated policy skips are not among them.
        with_masks: read masks too, which all but crowd regions must have. "if any": not where no
            annotation has one.
        need_objects: whether a file without annotations is an error.

    Raises:
        UserError: the file cannot be read, is not of COCO's shape, or has nothing to find.
    """
    path = Path(path)
    document = parse_coco(path)
    images = document["images"]
    image_ids = [int_of(entry, "id", f"{path}: images[{i}]") for i, entry in enumerate(images)]
    check_unique(np.array(image_ids), "image ids", path)
    sizes = {}
    for image_id, image in zip(image_ids, images, strict=True) if with_masks else ():
        where = f"{path}: image {image_id}"
        sizes[image_id] = [*size_of(image, where)]
    entries = document["annotations"]
    columns = read_annotations(entries, path, sizes=sizes)
    rows = np.arange(len(entries)) if kept_rows is None else np.array(sorted(kept_rows), np.int64)
    if need_objects:
        check_any(len(rows), "to score against", path)
    if with_masks == "if any":
        with_masks = bool(columns.segmentations.are_there[rows].any())
    if with_masks:
        check_masks(columns.segmentations, rows, columns.is_crowd[rows], path=path)
    truth = Truth(
        path,
        dict(zip(image_ids, images, strict=True)),
        dict(read_categories(document["categories"], path)),
        defaultdict(list),
        bool(with_masks),
    )
    for row in rows.tolist():
        _add_object(truth, row, entries[row])
    if with_masks:
        _add_masks(truth, columns.segmentations, sizes)
    return truth


def _add_object(truth: Truth, row: int, entry: dict[str, Any]) -> None:
    where = f"{truth.path}: annotation {entry['id']}"
    image_id = known_id(entry, "image_id", truth.images, truth.path, where)
    category_id = known_id(entry, "category_id", truth.names, truth.path, where)
    box, area = entry["bbox"], entry.get("area")
    if not all(map(math.isfinite, box)):
        raise UserError(f"{where}: bbox: expected finite numbers, got {box}")
    if area is not None and not 0 <= area < math.inf:
        raise UserError(f"{where}: area: expected a finite number of 0 or more, got {area}")
    truth.objects[category_id].append(
        {
            "id": row + 1,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "area": box[2] * box[3] if area is None else area,
            "iscrowd": int(entry.get("iscrowd") or 0),
            "difficult": int(entry.get("difficult") or 0),
            "ignored": int(entry.get("ignore") or 0),
            # kept for as long as a training takes: polygons that nobody reads are not
            "segmentation": entry.get("segmentation") if truth.with_masks else None,
            "filled": [key for key in ("area", "iscrowd") if entry.get(key) is None],
        }
    )


def _add_masks(truth: Truth, segmentations: Segmentations, sizes: dict[int, list[int]]) -> None:
    """Replace run lengths by those that were checked, and drop what of polygons is none.

    Polygons keep the digits of the file.
    """
    are_there = segmentations.are_there
    for each in (each for objects in truth.objects.values() for each in objects):
        row, (height, width) = each["id"] - 1, sizes[each["image_id"]]
        code = segmentations.run_lengths[row]
        if not are_there[row]:
            each["filled"].append("segmentation")
            nothing = np.zeros((0, 0), np.bool_)
            code = encode_window(nothing, top=0, left=0, size=(height, width))
        if code:
            each["segmentation"] = {"size": [height, width], "counts": code}
        else:
            each["segmentation"] = good_polygons(each["segmentation"])


def known_id(entry: dict[str, Any], key: str, known: Container[int], path: Path, where: str) -> int:
    """Return the id under `key`, one of those that `path` knows; UserError begins with `where`."""
    value = int_of(entry, key, where)
    if value not in known:
        raise UserError(f"{where}: {key}: expected one of {path}, got {value}")
    return value


@dataclass(frozen=True)
class Found:
    """M detections. Without `masks` the boxes are scored, with them the masks.

    image_ids, category_ids: (M,) int64. scores: (M,) float64. boxes: (M, 4) float64, zeros beside
    masks. masks: M of COCO's compressed RLE, or none. areas: (M,) float64, by which COCO calls a
    detection small, medium or large.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: list[dict[str, Any]]
    areas: np.ndarray

    def within(self, image_ids: Iterable[int]) -> "Found":
        """Return the detections in some pictures."""
        keep = np.flatnonzero(np.isin(self.image_ids, list(image_ids)))
        if len(keep) == len(self.image_ids):
            return self
        return Found(
            image_ids=self.image_ids[keep],
            category_ids=self.category_ids[keep],
            scores=self.scores[keep],
            boxes=self.boxes[keep],
            masks=[self.masks[row] for row in keep.tolist()] if self.masks else [],
            areas=self.areas[keep],
        )

    def of_category(self, category_id: int) -> list[dict[str, Any]]:
        """Return one category's detections as pycocotools wants them, in the order given."""
        rows = np.flatnonzero(self.category_ids == category_id)
        columns = (self.image_ids[rows], self.scores[rows], self.areas[rows])
        return [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "score": score,
                "area": area,
                "iscrowd": 0,
                **self._shape(row),
            }
            for number, (row, image_id, score, area) in enumerate(
                zip(rows.tolist(), *(column.tolist() for column in columns), strict=True), start=1
            )
        ]

    def _shape(self, row: int) -> dict[str, Any]:
        if self.masks:
            return {"segmentation": self.masks[row]}
        return {"bbox": self.boxes[row].tolist()}


class PictureRows(NamedTuple):
    """A network's detections in one picture, light enough to travel between processes.

    rows: (N, 6) float32 of x1, y1, x2, y2, score, label.
    """

    image_id: int
    rows: np.ndarray
    masks: RunLengthMasks | None


def pack_detections(
    gathered: Sequence[PictureRows], classes: ClassMap, truth: Truth, *, iou_type: IoUType
) -> Found:
    """Check a network's detections and pack them, as `coco_results.pack_results` does.

    Raises:
        UserError: a score or box is not finite, or a mask is not of its picture's size.
    """
    assert truth.images.keys() >= {image_id for image_id, *_ in gathered}
    assert truth.names.keys() >= set(classes.category_ids)
    source = "detections"
    counts = [len(rows) for _, rows, _ in gathered]
    rows = torch.from_numpy(
        np.concatenate([np.zeros((0, 6), np.float32), *(rows for _, rows, _ in gathered)])
    )
    masks: list[dict[str, Any]] = []
    for image_id, _, coded in gathered if iou_type == "segm" else ():
        assert coded is not None, "the network was made without masks"
        size, expected = list(coded.size), written_size(truth.images[image_id])
        if size != expected:
            where = f"{source}: detection {len(masks)}"
            raise UserError(f"{where}: segmentation: expected size {expected}, got {size}")
        masks += [{"size": size, "counts": code} for code in coded.codes]
    # in float32 as it is written to a results file, so that the file scores the same
    boxes = xyxy_to_xywh(rows[:, :4]).double().numpy()
    found = Found(
        np.repeat(np.array([image_id for image_id, *_ in gathered], dtype=np.int64), counts),
        np.array(classes.category_ids)[rows[:, 5].long().numpy()],
        rows[:, 4].double().numpy(),
        boxes,
        masks,
        areas_of(boxes, masks),
    )
    check_numbers(found, source)
    return found


def areas_of(boxes: np.ndarray, masks: list[dict[str, Any]]) -> np.ndarray:
    """Return (M,) float64: the masks' areas, or without masks those of boxes (M, 4)."""
    if masks:
        # one by one: pycocotools keeps the length of a list in a byte
        return np.array([mask_codec.area(mask) for mask in masks], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused in its place
        areas: np.ndarray = boxes[:, 2] * boxes[:, 3]
    return areas


def check_numbers(found: Found, source: str) -> None:
    """Raise UserError for the first detection whose score or box no detection can have."""
    bad_scores = ~np.isfinite(found.scores)
    bad_boxes = ~np.isfinite(found.boxes).all(axis=1) | (found.boxes[:, 2:] < 0).any(axis=1)
    for row in np.flatnonzero(bad_scores | bad_boxes)[:1].tolist():
        where = f"{source}: detection {row}"
        if bad_scores[row]:
            raise UserError(f"{where}: score: expected a number, got {found.scores[row]}")
        box = found.boxes[row].tolist()
        raise UserError(
            f"{where}: bbox: expected four finite numbers, no negative width or height, got {box}"
        )


def written_size(image: Mapping[str, Any]) -> list[Any]:
    """Return an image's [height, width] as its file has them."""
    return [image.get("height"), image.get("width")]
