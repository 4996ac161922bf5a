"""LabelMe's JSON: shapes, groups, paths, and bad shapes."""

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detection.datasets.formats.shapes import mask_area
from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, rows_of, write_files
from tests.detection.datasets.voc_files import write_image

POLYGON = [[5.0, 5.0], [25.0, 5.0], [25.0, 15.0], [5.0, 15.0]]


def labelme(shapes: list[dict[str, Any]], **changes: Any) -> str:
    """Return a file as LabelMe 5.5.0 writes it; the image is 60x40."""
    common: dict[str, Any] = {"group_id": None, "description": "", "flags": {}, "mask": None}
    content: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [common | shape for shape in shapes],
        "imagePath": "a.jpg",
        "imageData": None,
        "imageHeight": 40,
        "imageWidth": 60,
    }
    return json.dumps(content | changes, indent=2)


def shape(kind: str, points: Any, **changes: Any) -> dict[str, Any]:
    return {"label": "cat", "points": points, "shape_type": kind} | changes


def png(mask: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()).decode()


@pytest.mark.parametrize(
    ("given", "xywh"),
    [
        (shape("polygon", POLYGON), [5, 5, 20, 10]),
        (shape("rectangle", [[25, 15], [5, 5]]), [5, 5, 20, 10]),
        (shape("rectangle", POLYGON), [5, 5, 20, 10]),
        (shape("circle", [[20, 20], [20, 30]]), [10, 10, 20, 20]),
        (shape("mask", [[5, 6], [7, 7]], mask=png(np.ones((2, 3)))), [5, 6, 3, 2]),
        (shape("mask", [[58, 38], [61, 41]], mask=png(np.ones((4, 4)))), [58, 38, 2, 2]),
    ],
    ids=["polygon", "rectangle", "rectangle-of-four", "circle", "mask", "mask-beyond"],
)
def test_shapes(tmp_path: Path, given: dict[str, Any], xywh: list[float]) -> None:
    write_files(tmp_path, {"a.json": labelme([given])})
    assert rows_of(read_checked(tmp_path, "labelme")) == [("a.jpg", "cat", xywh)]


def test_shapes_without_area_are_dropped_by_name(tmp_path: Path) -> None:
    shapes = [shape("point", [[1, 1]]), shape("linestrip", [[1, 1], [2, 2]])]
    write_files(tmp_path, {"a.json": labelme(shapes), "other.json": "[]"})
    counts = dict(read_checked(tmp_path, "labelme").rows)
    assert counts["dropped, shapes `point`"] == counts["dropped, shapes `linestrip`"] == 1
    assert counts["dropped, JSON files that are not LabelMe's"] == 1


def test_parts_of_a_group_are_one_object(tmp_path: Path) -> None:
    other = [[30, 5], [40, 5], [40, 15]]
    shapes = [shape("polygon", POLYGON, group_id=1), shape("polygon", other, group_id=1)]
    shapes += [shape("polygon", POLYGON, group_id=1, label="dog"), shape("polygon", POLYGON)]
    write_files(tmp_path, {"a.json": labelme(shapes)})
    checked = read_checked(tmp_path, "labelme")
    assert [len(found.polygons) for found in checked.images[0].objects] == [2, 1, 1]
    assert rows_of(checked)[0] == ("a.jpg", "cat", [5, 5, 35, 10])


def test_a_group_of_mask_and_polygon_is_one_mask(tmp_path: Path) -> None:
    mask = shape("mask", [[50, 30], [51, 31]], mask=png(np.ones((2, 2))), group_id=3)
    write_files(tmp_path, {"a.json": labelme([shape("polygon", POLYGON, group_id=3), mask])})
    (found,) = read_checked(tmp_path, "labelme").images[0].objects
    assert mask_area(found.run_lengths, (40, 60)) == 20 * 10 + 4


@pytest.mark.parametrize(
    ("file", "image_path", "expected"),
    [
        ("a.json", "a.jpg", "a.jpg"),
        ("ann/a.json", "..\\images\\ü b.jpg", "images/ü b.jpg"),
        ("ann/a.json", "a.jpg", "ann/a.jpg"),
    ],
)
def test_image_paths(tmp_path: Path, file: str, image_path: str, expected: str) -> None:
    text = labelme([shape("polygon", POLYGON)], imagePath=image_path).replace("\n", "\r\n")
    write_files(tmp_path, {file: "\ufeff" + text})
    assert rows_of(read_checked(tmp_path, "labelme"))[0][0] == expected


def test_missing_size_is_read_from_the_image(tmp_path: Path) -> None:
    text = labelme([shape("polygon", POLYGON)], imageHeight=None, imageWidth=None)
    write_files(tmp_path, {"a.json": text})
    write_image(tmp_path / "a.jpg", height=30, width=50)
    checked = read_checked(tmp_path, "labelme")
    assert checked.images[0].size == (30, 50)
    assert dict(checked.rows)["sizes read from the image"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (shape("polygon", [[1, 1], [2, 2]]), "shape 1: points: expected three or more, got 2"),
        (shape("polygon", []), r"shape 1: points: expected a list of \[x, y\]"),
        (shape("polygon", [[1, "x"]] * 3), r"shape 1: points: expected a list of \[x, y\]"),
        (shape("triangle", POLYGON), "expected a known shape_type and its points, got 'triangle'"),
        (shape("mask", [[1, 1], [2, 2]], mask="%%"), "mask: expected a PNG in base64"),
        (shape("polygon", POLYGON, label=" "), "label: expected a class, got ' '"),
        (shape("polygon", POLYGON, label="a\x1b[2J"), "expected no control characters"),
    ],
)
def test_bad_shapes(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    write_files(tmp_path, {"a.json": labelme([given, shape("polygon", POLYGON)])})
    with pytest.raises(UserError, match=message):
        read_checked(tmp_path, "labelme")
    assert len(rows_of(read_checked(tmp_path, "labelme", policy="skip"))) == 1


def test_two_files_of_one_image(tmp_path: Path) -> None:
    files = {name: labelme([shape("polygon", POLYGON)]) for name in ("a.json", "b.json")}
    write_files(tmp_path, files)
    checked = read_checked(tmp_path, "labelme")
    counts = dict(checked.rows)
    assert counts["images"] == counts["objects"] == 1
    assert counts["dropped, objects of an image that was read before"] == 1
