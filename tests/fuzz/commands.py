"""A small COCO data set for fuzzing, and calls of commands."""

import contextlib
import copy
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from detection.commands import evaluate as eval_tool

SIZES = [(64, 64), (48, 80), (64, 64), (60, 40)]
"""(height, width) of 0.jpg, 1.jpg, ..."""


def _mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8, order="F")
    x, y, width, height = box
    mask[y : y + height, x : x + width] = 1
    return mask


def _compressed(size: tuple[int, int], box: tuple[int, int, int, int]) -> dict[str, Any]:
    code = coco_mask.encode(_mask(size, box))["counts"]
    return {"size": list(size), "counts": code.decode()}


def _runs(size: tuple[int, int], box: tuple[int, int, int, int]) -> dict[str, Any]:
    flat = np.concatenate([[0], _mask(size, box).ravel(order="F"), [2]])
    bounds = np.flatnonzero(np.diff(flat))
    return {"size": list(size), "counts": np.diff([0, *bounds.tolist()]).tolist()}


def _polygon(box: tuple[int, int, int, int]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height + 0.5, x, y + height]


def coco_document() -> dict[str, Any]:
    """Return a valid COCO document with every field that our reader knows."""
    boxes = [(5, 5, 30, 40), (20, 10, 25, 25), (2, 3, 10, 12), (30, 30, 20, 20), (1, 1, 38, 50)]
    objects: list[dict[str, Any]] = [
        {"image_id": 10, "category_id": 4, "segmentation": [_polygon(boxes[0])]},
        {
            "image_id": 11,
            "category_id": 9,
            "segmentation": [_polygon(boxes[1]), _polygon((22, 12, 5, 5))],
            "ignore": 0,
            "difficult": 0,
        },
        {"image_id": 10, "category_id": 9, "segmentation": _compressed(SIZES[0], boxes[2])},
        {
            "image_id": 10,
            "category_id": 4,
            "segmentation": _runs(SIZES[0], boxes[3]),
            "iscrowd": 1,
        },
        {
            "image_id": 13,
            "category_id": 9,
            "segmentation": _runs(SIZES[3], boxes[4]),
            "ignore": 1,
            "difficult": 1,
            "attributes": {"occluded": False},
        },
    ]
    annotations = [
        {"id": i, "bbox": list(box), "area": float(box[2] * box[3]), "iscrowd": 0} | each
        for i, (box, each) in enumerate(zip(boxes, objects, strict=True), start=1)
    ]
    images = [
        {"id": 10 + i, "file_name": f"{i}.jpg", "height": height, "width": width, "license": 1}
        for i, (height, width) in enumerate(SIZES)
    ]
    return {
        "info": {"year": 2017, "version": "1.0"},
        "licenses": [{"id": 1, "name": "none"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": 4, "name": "cow", "supercategory": "animal"},
            {"id": 9, "name": "ant", "supercategory": "animal"},
        ],
    }


def results_of(document: dict[str, Any], *, masks: bool) -> list[dict[str, Any]]:
    """Return valid results for a document: its objects, slightly shifted; half have names."""
    names = {each["id"]: each["name"] for each in document["categories"]}
    files = {each["id"]: each["file_name"] for each in document["images"]}
    results = []
    for number, each in enumerate(document["annotations"]):
        x, y, width, height = each["bbox"]
        result = {
            "image_id": each["image_id"],
            "category_id": each["category_id"],
            "bbox": [x + 1, y + 0.5, width, height],
            "score": 0.9 - 0.1 * number,
        }
        if number % 2:
            result["file_name"] = files[each["image_id"]]
            result["category_name"] = names[each["category_id"]]
        if masks:
            row = each["image_id"] - 10
            make = _runs if number % 2 else _compressed
            result["segmentation"] = make(SIZES[row], tuple(each["bbox"]))
        results.append(result)
    return results


def write_site(site: Path) -> None:
    """Write the images, the document as val.json, and results with boxes and with masks."""
    document = coco_document()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        pixels = rng.integers(256, size=(height // 4, width // 4, 3), dtype=np.uint8)
        cv2.imwrite(str(site / f"{number}.jpg"), cv2.resize(pixels, (width, height)))
    (site / "val.json").write_text(json.dumps(document))
    for name, masks in (("boxes.json", False), ("masks.json", True)):
        (site / name).write_text(json.dumps(results_of(copy.deepcopy(document), masks=masks)))


def import_scoring(site: Path, *, with_curves: bool) -> None:
    """Score once, so that forked processes inherit its imports, which take seconds."""
    arguments = ["--results", str(site / "boxes.json"), f"data.val.annotations={site}/val.json"]
    arguments += ["--output", str(site / "scores")] if with_curves else []
    with contextlib.redirect_stdout(None):
        run_tool(eval_tool, *arguments)


def run_tool(tool: ModuleType, *arguments: str) -> None:
    """Call a command's main function with command line arguments."""
    sys.argv = [f"{tool.__name__.rpartition('.')[2]}.py", *arguments]
    tool.main()
