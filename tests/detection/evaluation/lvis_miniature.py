"""A made LVIS file with made detections, and their numbers by lvis-api 0.5.3.

lvis-api needs `np.float`, which numpy 1.24 removed, and opencv-python beside the headless one; so
the tests read its numbers from lvis_expected.json. This writes them again:

    pip install --target DIR --no-deps lvis==0.5.3
    PYTHONPATH=.:DIR python -m tests.detection.evaluation.lvis_miniature

Random numbers are those of `random.Random.random`, which Python keeps the same in all versions.
"""

import copy
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_codec

EXPECTED = Path(__file__).parent / "lvis_expected.json"
"""By IoU type, the results of lvis-api."""
SIDE = 320
NUM_IMAGES, NUM_CLASSES, NUM_OBJECTS, NUM_DETECTIONS = 24, 12, 150, 1200
FULL_IMAGE = 101
"""Id of an image with more than 300 detections."""
EMPTY_IMAGES = (122, 123)
"""Ids of images without annotations; the last one has no detections either."""


def miniature() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an LVIS document and the results of a network for it, boxes and masks.

    Each image has negative classes, among which detections count as false positives, classes that
    are not exhaustive, and classes of which nothing is known. A frequent class has no objects.
    Scores are multiples of 0.05, so that many are equal. Some objects and detections have the area
    0.
    """
    rng = random.Random(0)
    images = [
        {
            "id": 100 + number,
            "coco_url": f"http://images.cocodataset.org/val2017/{number:012}.jpg",
            "height": SIDE,
            "width": SIDE,
            "neg_category_ids": _some_classes(rng, 0.25),
            "not_exhaustive_category_ids": _some_classes(rng, 0.15),
        }
        for number in range(NUM_IMAGES)
    ]
    categories = [
        {"id": 3 * place + 1, "name": f"class {place}", "frequency": "rcf"[place % 3]}
        for place in range(NUM_CLASSES)
    ]
    annotations: list[dict[str, Any]] = []
    for number in range(NUM_OBJECTS):
        box = _box(rng)
        annotations.append(
            {
                "id": number + 1,
                "image_id": 100 + int(rng.random() * (NUM_IMAGES - len(EMPTY_IMAGES))),
                # not the last class
                "category_id": 3 * int(rng.random() * (NUM_CLASSES - 1)) + 1,
                "bbox": box,
                "area": 0 if number % 40 == 7 else round(0.8 * box[2] * box[3], 2),
                "segmentation": _polygons(box) if number % 3 else _run_lengths(box),
            }
        )
    document = {"images": images, "categories": categories, "annotations": annotations}
    return document, [_detection(rng, number, annotations) for number in range(NUM_DETECTIONS)]


def _some_classes(rng: random.Random, probability: float) -> list[int]:
    return [3 * place + 1 for place in range(NUM_CLASSES) if rng.random() < probability]


def _box(rng: random.Random) -> list[float]:
    """Return xywh inside the image; sides from 8 to 256 are in all three ranges of area."""
    width, height = (round(8 * 32 ** rng.random(), 2) for _ in range(2))
    return [
        round(rng.random() * (SIDE - width), 2),
        round(rng.random() * (SIDE - height), 2),
        width,
        height,
    ]


def _polygons(box: list[float]) -> list[list[float]]:
    """Return a box with a corner cut off."""
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x + width / 3, y + height, x, y + 1]]


def _run_lengths(box: list[float]) -> dict[str, Any]:
    code = mask_codec.merge(mask_codec.frPyObjects(_polygons(box), SIDE, SIDE))
    return {"size": [SIDE, SIDE], "counts": code["counts"].decode()}


def _detection(
    rng: random.Random, number: int, annotations: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a moved copy of an object, or one time in three a box of any class anywhere."""
    known = annotations[int(rng.random() * NUM_OBJECTS)]
    image_id, category_id, best = known["image_id"], known["category_id"], 1.0
    box = [value * (0.94 + 0.12 * rng.random()) for value in known["bbox"]]
    if number % 3 == 0:
        image_id, box = 100 + int(rng.random() * (NUM_IMAGES - 1)), _box(rng)
        category_id, best = 3 * int(rng.random() * NUM_CLASSES) + 1, 0.8
    if number < 330:
        image_id = FULL_IMAGE
    box = [min(box[0], SIDE - 8.0), min(box[1], SIDE - 8.0), box[2], box[3]]
    box[2:] = [min(box[2], SIDE - box[0]), min(box[3], SIDE - box[1])]
    box = [round(value, 2) for value in box]
    if number % 90 == 8:
        box[2] = 0.0
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "score": round(20 * best * rng.random()) / 20,
        "segmentation": _run_lengths(box),
    }


def without(key: str, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results without `bbox` or `segmentation`."""
    return [{name: value for name, value in each.items() if name != key} for each in results]


def _scored_by_lvis_api(iou_type: str) -> dict[str, float]:
    import matplotlib as mpl

    mpl.use("Agg")
    vars(np)["float"] = float
    from lvis import LVIS, LVISEval, LVISResults  # type: ignore[import-not-found]

    document, results = miniature()
    # masks alone: with boxes lvis-api would take the area of the box for that of the mask
    results = without("segmentation" if iou_type == "bbox" else "bbox", results)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lvis.json"
        path.write_text(json.dumps(document))
        truth = LVIS(str(path))
    evaluator = LVISEval(truth, LVISResults(truth, copy.deepcopy(results)), iou_type)
    evaluator.run()
    return {key: float(value) for key, value in evaluator.get_results().items()}


if __name__ == "__main__":
    numbers = {iou_type: _scored_by_lvis_api(iou_type) for iou_type in ("bbox", "segm")}
    EXPECTED.write_text(json.dumps(numbers, indent=2) + "\n")
