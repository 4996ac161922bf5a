"""COCO files with objects of all kinds, for tests of samples that are squares."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

SIZES = {"objects.png": (40, 56), "others.png": (50, 30), "empty.png": (30, 30)}


def run_lengths(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    mask = np.zeros(size, np.uint8)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = 1
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(size), "counts": code["counts"].decode()}


def document() -> dict[str, Any]:
    """Objects in a corner, across the border, of one pixel, in parts, to ignore; an empty image."""
    objects: list[tuple[int, list[float], Any, dict[str, int]]] = [
        (1, [5, 4, 20.5, 16], [[5, 4, 25.5, 4, 25.5, 20, 9, 20]], {}),
        (1, [0, 25, 14, 15], [[-3, 25, 14.2, 27.3, 9, 44]], {}),
        (1, [30, 10, 1, 1], run_lengths(SIZES["objects.png"], (30, 10, 31, 11)), {}),
        (
            1,
            [10, 2, 40, 36],
            run_lengths(SIZES["objects.png"], (10, 2, 20, 38), (40, 5, 50, 15)),
            {},
        ),
        (1, [25, 22, 30, 16], run_lengths(SIZES["objects.png"], (25, 22, 55, 38)), {"iscrowd": 1}),
        (2, [2, 3, 26, 40], [[2, 3, 28, 3, 28, 43, 2, 43], [2, 45, 9, 45, 9, 49]], {}),
        (2, [20, 30, 10, 20], [[20, 30, 30, 30, 30, 50, 20, 50]], {}),
        (2, [3, 30, 9, 9], [[3, 30, 12, 30, 12, 39]], {"difficult": 1}),
    ]
    return {
        "images": [
            {"id": i, "file_name": name, "height": height, "width": width}
            for i, (name, (height, width)) in enumerate(SIZES.items(), start=1)
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1 + i % 2, "bbox": box, **flags}
            | {"segmentation": segmentation}
            for i, (image, box, segmentation, flags) in enumerate(objects)
        ],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "cow"}],
    }
