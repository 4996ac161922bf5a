"""A small COCO file to break in one place, and images to go with it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

CocoWriter = Callable[[dict[str, Any]], Path]

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 70, "file_name": "b.png", "height": 40, "width": 60},
        {"id": 5, "file_name": "a.png", "height": 50, "width": 30},
        {"id": 9, "file_name": "empty.png", "height": 30, "width": 30},
    ],
    "annotations": [
        {
            "id": 11,
            "image_id": 5,
            "category_id": 7,
            "bbox": [2, 3, 10, 20.5],
            "area": 150.5,
            "iscrowd": 0,
            "segmentation": [[2, 3, 12, 3, 12, 23.5], [2, 3, 4, 3, 4, 9, 2, 9]],
        },
        {
            "id": 12,
            "image_id": 70,
            "category_id": 3,
            "bbox": [0, 0, 60, 40],
            "area": 12,
            "iscrowd": 1,
            "segmentation": {"size": [40, 60], "counts": [4, 12, 2384]},
        },
        {"id": 14, "image_id": 5, "category_id": 90, "bbox": [20, 30, 10, 20]},
    ],
    "categories": [
        {"id": 90, "name": "zebra"},
        {"id": 3, "name": "ant"},
        {"id": 7, "name": "cow"},
    ],
}


@pytest.fixture
def document() -> dict[str, Any]:
    """Three images, three boxes, three classes with gaps in their ids; changed freely."""
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def write_coco(tmp_path: Path) -> CocoWriter:
    """Writes a document to coco.json and, once, a random image for each of its images."""

    def write(document: dict[str, Any]) -> Path:
        rng = np.random.default_rng(0)
        for image in document["images"]:
            pixels = rng.integers(256, size=(image["height"], image["width"], 3), dtype=np.uint8)
            if not (tmp_path / image["file_name"]).exists():
                cv2.imwrite(str(tmp_path / image["file_name"]), pixels)
        path = tmp_path / "coco.json"
        path.write_text(json.dumps(document))
        return path

    return write
