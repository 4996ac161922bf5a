"""Small COCO files to score against."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_codec

from detection.data.coco import ClassMap

CLASSES = ClassMap(("person", "dog", "kite"), (1, 18, 38))
CATEGORIES = [
    {"id": i, "name": name} for i, name in zip(CLASSES.category_ids, CLASSES.names, strict=True)
]
NUM_IMAGES = 9
MASK = {"size": [400, 400], "counts": "PXl4"}
MASK_RESULT = {"image_id": 1, "category_id": 1, "segmentation": MASK, "score": 1}


def make_document(seed: int = 0) -> dict[str, Any]:
    """Random objects of two of the three classes, some of them crowds, one image empty."""
    rng = np.random.default_rng(seed)
    annotations = []
    for number in range(40):
        x, y, width, height = rng.uniform([0, 0, 10, 10], [200, 200, 150, 150])
        annotations.append(
            {
                "id": 100 + number,
                "image_id": int(rng.integers(1, NUM_IMAGES)),
                "category_id": int(rng.choice([1, 38])),
                "bbox": [x, y, width, height],
                "area": 0.7 * width * height,
                "iscrowd": int(number % 13 == 0),
            }
        )
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 400, "width": 400}
            for i in range(NUM_IMAGES)
        ],
        "annotations": annotations,
        "categories": CATEGORIES,
    }


def mask_document() -> dict[str, Any]:
    """The first object, a crowd, has no mask; the others have run lengths or polygons."""
    document = make_document()
    for number, annotation in enumerate(document["annotations"][1:]):
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        if number % 2:
            polygons = annotation["segmentation"]
            code = mask_codec.merge(mask_codec.frPyObjects(polygons, 400, 400))
            annotation["segmentation"] = {"size": [400, 400], "counts": code["counts"].decode()}
    return document


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
