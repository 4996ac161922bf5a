"""What looks odd in a file is counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data.coco import read_coco
from detection.data.data_report import count_repeated_boxes, find_misfit_areas

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]


def rows_of(document: Document, write_coco: CocoWriter) -> dict[str, int]:
    path = write_coco({"images": []})
    path.write_text(json.dumps(document))
    return dict(read_coco(path).report.rows())


def test_nothing_odd_is_not_spoken_of(document: Document, write_coco: CocoWriter) -> None:
    assert set(rows_of(document, write_coco)) == {
        *("images", "images without boxes", "boxes", "crowd regions among them"),
        *("areas filled in", "iscrowd filled in"),
    }


@pytest.mark.parametrize("name", ["a.png", "./a.png", "/a.png", "x/../a.png", ".//a.png"])
def test_a_file_of_two_images(document: Document, write_coco: CocoWriter, name: str) -> None:
    document["images"][0]["file_name"] = name
    assert rows_of(document, write_coco)["images that share a file with another image"] == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 1),
        ({"area": 3, "iscrowd": 1}, 1),
        ({"category_id": 3}, None),
        ({"image_id": 70}, None),
        ({"bbox": [2, 3, 10, 20.25]}, None),
        ({"bbox": [3, 2, 10, 20.5]}, None),
    ],
    ids=["same", "other marks", "other class", "other image", "other height", "other corner"],
)
def test_boxes_there_twice(
    document: Document, write_coco: CocoWriter, change: dict[str, Any], expected: int | None
) -> None:
    document["annotations"].append({**document["annotations"][0], "id": 20, **change})
    rows = rows_of(document, write_coco)
    assert rows.get("repeated boxes (same image, class and box)") == expected


def test_many_boxes_there_twice_are_counted_exactly() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.integers(0, 5, size=(5000, 4)).astype(np.float32)
    images, labels = rng.integers(0, 9, size=5000), rng.integers(0, 3, size=5000)
    rows = {(*box, i, k) for box, i, k in zip(boxes.tolist(), images, labels, strict=True)}
    assert count_repeated_boxes(images, labels, boxes) == 5000 - len(rows)
    assert count_repeated_boxes(images[:0], labels[:0], boxes[:0]) == 0


@pytest.mark.parametrize(
    ("area", "box", "count"),
    [
        (1200, [0, 0, 30, 40], 0),
        (600.5, [0, 0, 30, 40], 0),
        (1, [0, 0, 30, 40], 1),
        (0, [0, 0, 30, 40], 1),
        (0.03, [0, 0, 30, 40], 1),
        (1, [0, 0, 1, 1], 0),
        (0.5, [0, 0, 3, 3], 0),
        (1250, [0, 0, 30, 40], 0),  # a mask's pixels, which the box cuts at its border
        (1300, [0, 0, 30, 40], 1),
        (6144, [0, 0, 30, 40], 1),
    ],
)
def test_areas_that_do_not_fit(area: float, box: list[float], count: int) -> None:
    found = find_misfit_areas(np.array([area], np.float32), np.array([box], np.float64))
    assert found.tolist() == [bool(count)]


def test_classes_without_boxes_are_named(document: Document, write_coco: CocoWriter) -> None:
    document["categories"] += [{"id": 100 + i, "name": f"new {i}"} for i in range(7)]
    expected = "classes without boxes: new 0, new 1, new 2, new 3, new 4 and 2 more"
    assert rows_of(document, write_coco)[expected] == 7


@pytest.mark.parametrize(
    "file",
    ["coco128/annotations/instances_train2017.json", "bccd/annotations/train.json"],
    ids=["coco128", "bccd"],
)
def test_real_files_are_hardly_odd(data_dir: Path, file: str) -> None:
    report = read_coco(data_dir / file).report
    assert (report.shared_files, report.swapped_images) == (0, 0)
    assert report.misfit_areas <= 2
    assert report.repeated_boxes <= 2
