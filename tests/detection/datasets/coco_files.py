"""Small COCO documents of the tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detection.datasets.coco_document import CocoDocument, read_document

CLASSES = ("cat", "dog", "owl")


def make_content(objects: Mapping[str, Sequence[str]], **keys: Any) -> dict[str, Any]:
    """Return a document: for each file name the classes of its objects, in 30 x 20 boxes."""
    images = [
        {"id": 10 * row, "file_name": name, "height": 60, "width": 80}
        for row, name in enumerate(objects, start=1)
    ]
    pairs = [(image, name) for image in images for name in objects[str(image["file_name"])]]
    annotations = [
        {
            "id": 100 + number,
            "image_id": image["id"],
            "category_id": 2 * CLASSES.index(name) + 1,
            "bbox": [5, 5 + number % 7, 30, 20],
        }
        for number, (image, name) in enumerate(pairs)
    ]
    categories = [{"id": 2 * k + 1, "name": name} for k, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories, **keys}


def make_document(folder: Path, content: Mapping[str, Any], name: str = "a.json") -> CocoDocument:
    """Write a document and read it."""
    (folder / name).write_text(json.dumps(content))
    return read_document(folder / name)
