"""Small tables of matches: written by hand, random, and degenerate ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detection.evaluation.match_files import match_file
from detection.evaluation.matching import MatchTable
from tests.detection.evaluation.test_coco_backends import random_results, random_truth

Object = tuple[int, int, Sequence[float]]
"""Image, class (1 to 3), and xywh of an object."""
Found = tuple[int, int, Sequence[float], float]
"""The same of a detection, and its score."""
CATEGORIES = [{"id": i, "name": name} for i, name in enumerate(("ant", "bee", "cow"), start=1)]


def document_of(objects: Sequence[Object], *, crowds: Sequence[int] = ()) -> dict[str, Any]:
    """Four images of 100x200, and objects with ids from 1; `crowds` are positions of crowds."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 200} for i in range(4)
        ],
        "annotations": [
            {
                "id": number + 1,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": int(number in crowds),
            }
            for number, (image, category, box) in enumerate(objects)
        ],
        "categories": CATEGORIES,
    }


def results_of(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": category, "bbox": list(box), "score": score}
        for image, category, box, score in found
    ]


def matched(folder: Path, document: Any, results: Any) -> MatchTable:
    """Write both files to `folder` and match them."""
    truth, path = folder / "truth.json", folder / "results.json"
    truth.write_text(json.dumps(document))
    path.write_text(json.dumps(results))
    return match_file(path, truth).matches["bbox"]


def table_of(
    folder: Path, objects: Sequence[Object], found: Sequence[Found], *, crowds: Sequence[int] = ()
) -> MatchTable:
    return matched(folder, document_of(objects, crowds=crowds), results_of(found))


def random_table(folder: Path, seed: int = 0) -> MatchTable:
    rng = np.random.default_rng(seed)
    document = random_truth(rng)
    results = random_results(rng, document)
    for each in (*document["annotations"], *results):
        del each["segmentation"]
    return matched(folder, document, results)


BOX = (10, 10, 40, 40)
DEGENERATE: dict[str, tuple[list[Object], list[Found], list[int]]] = {
    "no detections": ([(0, 1, BOX)], [], []),
    "all crowd": ([(0, 1, BOX), (1, 2, BOX)], [(0, 1, BOX, 0.9), (2, 1, BOX, 0.4)], [0, 1]),
    "one of each": ([(0, 1, BOX)], [(0, 1, BOX, 0.9)], []),
    "all wrong": ([(0, 1, BOX)], [(1, 2, BOX, 0.9), (2, 3, BOX, 1.0)], []),
    "scores of 0 and 1": ([(0, 1, BOX), (1, 1, BOX)], [(0, 1, BOX, 0.0), (1, 1, BOX, 1.0)], []),
    "boxes without a side": ([(0, 1, BOX)], [(0, 1, (10, 10, 0, 40), 0.9)], []),
}
