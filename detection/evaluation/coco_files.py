"""Reading what COCO scoring needs: an annotation file, and detections in the results format.

M detections. Boxes are xywh here, as in the files, and ids are the files' own.
"""

import json
import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as mask_codec

from detection.data.coco_json import int_of, name_of, parse_coco, read_annotations
from engine.errors import UserError

IoUType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Truth:
    """A COCO annotation file, as far as scoring needs it.

    images: by image id. names: by rising category id. objects: by category id, annotations with
    `area` (width times height of the box), `iscrowd` and `difficult` (0) filled in, and with ids
    from 1, because pycocotools takes an object with id 0 for an unmatched one. filled: how many
    objects lacked a field that COCO's files have, by its name; empty when none did.
    """

    path: Path
    images: dict[int, dict[str, Any]]
    names: dict[int, str]
    objects: dict[int, list[dict[str, Any]]]
    filled: dict[str, int]


def read_truth(path: Path | str, *, kept_rows: Iterable[int] | None = None) -> Truth:
    """Read a COCO annotation file for scoring; the file itself is not changed.

    Args:
        path: the file.
        kept_rows: places of the annotations that count, in the order of the file; None: all.

    Raises:
        UserError: the file cannot be read, is not of COCO's shape, or has nothing to find.
    """
    path = Path(path)
    document = parse_coco(path)
    images, names = (
        {int_of(entry, "id", f"{path}: {key}[{i}]"): entry for i, entry in enumerate(document[key])}
        for key in ("images", "categories")
    )
    entries = document["annotations"]
    columns = read_annotations(entries, path)
    filled = {"area": columns.filled_areas, "iscrowd": columns.filled_iscrowds}
    truth = Truth(
        path,
        images,
        {i: name_of(names[i], "name", f"{path}: category {i}") for i in sorted(names)},
        defaultdict(list),
        {name: count for name, count in filled.items() if count},
    )
    for row in range(len(entries)) if kept_rows is None else sorted(kept_rows):
        _add_object(truth, row, entries[row])
    if not truth.objects:
        raise UserError(f"{path}: annotations: expected at least one to score against, got none")
    return truth


def _add_object(truth: Truth, row: int, entry: dict[str, Any]) -> None:
    where = f"{truth.path}: annotation {entry['id']}"
    image_id, category_id = _known_ids(entry, truth, where)
    box, area = _finite_box(entry, where), entry.get("area")
    truth.objects[category_id].append(
        {
            "id": row + 1,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "area": box[2] * box[3] if area is None else area,
            "iscrowd": int(entry.get("iscrowd") or 0),
            "difficult": int(entry.get("difficult") or 0),
            "segmentation": entry.get("segmentation"),
        }
    )


def _known_ids(entry: dict[str, Any], truth: Truth, where: str) -> tuple[int, int]:
    ids = int_of(entry, "image_id", where), int_of(entry, "category_id", where)
    if ids[0] not in truth.images:
        raise UserError(f"{where}: image_id: expected one of {truth.path}, got {ids[0]}")
    if ids[1] not in truth.names:
        raise UserError(f"{where}: category_id: expected one of {truth.path}, got {ids[1]}")
    return ids


def _finite_box(entry: dict[str, Any], where: str) -> list[float]:
    box: Any = entry.get("bbox")
    fits = isinstance(box, list) and len(box) == 4
    if not fits or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        raise UserError(
            f"{where}: bbox: expected four numbers [x, y, width, height], got {str(box)[:60]}"
        )
    numbers: list[float] = box
    return numbers


def check_masks(truth: Truth) -> None:
    """Raise UserError when masks cannot be scored: an object or its picture's size is missing."""
    for entry in (entry for entries in truth.objects.values() for entry in entries):
        where = f"{truth.path}: annotations[{entry['id'] - 1}]"
        if not entry["segmentation"]:
            raise UserError(f"{where}: segmentation: expected polygons or an RLE, got nothing")
        for key in ("height", "width"):
            int_of(truth.images[entry["image_id"]], key, f"{where}: its image", positive=True)


def read_results(path: Path | str) -> list[Any]:
    """Read a file of detections in COCO's results format; `pack_results` checks its entries.

    Raises:
        UserError: the file cannot be read, or holds no JSON list.
    """
    try:
        results = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(results, list):
        raise UserError(f"{path}: expected a list of detections, got {type(results).__name__}")
    return results


def iou_types_of(results: list[Any]) -> tuple[IoUType, ...]:
    """Return what can be scored of results in COCO's format: what the first entry has."""
    first = results[0] if results else None
    if not isinstance(first, dict):
        return ("bbox",)
    if "bbox" not in first:
        return ("segm",)
    return ("bbox", "segm") if "segmentation" in first else ("bbox",)


@dataclass
class Found:
    """M detections, packed: 56 bytes each instead of a dictionary. boxes: 4 M numbers, or masks."""

    image_ids: "array[int]" = field(default_factory=lambda: array("q"))
    category_ids: "array[int]" = field(default_factory=lambda: array("q"))
    scores: "array[float]" = field(default_factory=lambda: array("d"))
    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    masks: list[dict[str, Any]] = field(default_factory=list)

    def of_category(self, category_id: int) -> list[dict[str, Any]]:
        """Return one category's detections as pycocotools wants them, in the order given."""
        rows = np.flatnonzero(np.asarray(self.category_ids) == category_id).tolist()
        return [
            {
                "id": number,
                "image_id": self.image_ids[row],
                "category_id": category_id,
                "score": self.scores[row],
                "iscrowd": 0,
                **self._shape(row),
            }
            for number, row in enumerate(rows, start=1)
        ]

    def _shape(self, row: int) -> dict[str, Any]:
        if self.masks:
            mask = self.masks[row]
            return {"segmentation": mask, "area": float(mask_codec.area(mask))}
        box = self.boxes[4 * row : 4 * row + 4].tolist()
        return {"bbox": box, "area": box[2] * box[3]}


def pack_results(results: Iterable[Any], truth: Truth, *, iou_type: IoUType, source: str) -> Found:
    """Check detections in COCO's results format and pack them.

    Args:
        results: each with `image_id`, `category_id`, `score`, and `bbox` or `segmentation`.
        truth: the annotations to which their ids belong.
        iou_type: whether `bbox` or `segmentation` (compressed RLE) is read.
        source: the results' name in messages.

    Raises:
        UserError: a result is malformed, or of an image or a category that the annotations lack.
    """
    found = Found()
    for index, result in enumerate(results):
        where = f"{source}: detection {index}"
        if not isinstance(result, dict):
            raise UserError(f"{where}: expected an object, got {type(result).__name__}")
        image_id, category_id = _known_ids(result, truth, where)
        score: Any = result.get("score")
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise UserError(f"{where}: score: expected a number, got {score!r:.60}")
        found.image_ids.append(image_id)
        found.category_ids.append(category_id)
        found.scores.append(score)
        if iou_type == "bbox":
            box = _finite_box(result, where)
            if min(box[2:]) < 0:
                raise UserError(f"{where}: bbox: expected no negative width or height, got {box}")
            found.boxes.extend(box)
        else:
            image = truth.images[image_id]
            found.masks.append(_mask(result.get("segmentation"), image, where))
    return found


def _mask(mask: Any, image: Mapping[str, Any], where: str) -> dict[str, Any]:
    size = [image.get("height"), image.get("width")]
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
        raise UserError(f"{where}: segmentation: expected a compressed RLE, got {str(mask)[:60]}")
    if mask.get("size") != size:
        raise UserError(f"{where}: segmentation: expected size {size}, got {mask.get('size')}")
    return mask
