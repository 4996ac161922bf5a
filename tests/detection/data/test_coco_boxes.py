"""The reader without masks gives what the full reader gives, and refuses what it refuses."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data import coco_boxes
from detection.data.coco import read_coco
from detection.data.coco_boxes import read_box_tables
from detection.data.coco_json import AnnotationTable, read_tables
from engine.errors import UserError

IMAGE = {"id": 1, "file_name": "ä.jpg", "height": 40, "width": 60}
OBJECT = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2.5, 10, 20]}


def document(*changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [IMAGE],
        "annotations": [{**OBJECT, "id": key, **each} for key, each in enumerate(changes)],
        "categories": [{"id": 3, "name": "cat"}],
    }


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def columns(table: AnnotationTable) -> dict[str, Any]:
    skipped = ("segmentations", "unreadable_masks", "dropped_mask_parts")
    return {
        each.name: getattr(table, each.name) for each in fields(table) if each.name not in skipped
    }


@pytest.fixture
def only_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a fall back to the full reader an error."""

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path}: read by the full reader")

    monkeypatch.setattr(coco_boxes, "read_tables", refuse)


@pytest.mark.usefixtures("only_fast")
@pytest.mark.parametrize(
    "content",
    [
        document(),
        document({}),
        document({"area": 3}, {"area": 0.5, "iscrowd": 1}, {"iscrowd": None, "ignore": 0}),
        document({"iscrowd": True, "difficult": False}, {"difficult": 1, "extra": [{"a": 1}]}),
        document({"segmentation": [[1, 2, 3, 4, 5, 6]]}, {"segmentation": {"counts": "x"}}),
        {key: value for key, value in document().items() if key != "annotations"},
    ],
    ids=["empty", "plain", "areas", "flags", "masks", "no annotations"],
)
def test_same_as_the_full_reader(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / "a.json", content)
    found, expected = read_box_tables(path), read_tables(path)
    assert found.categories == expected.categories
    assert bytes(found.images.names.data) == bytes(expected.images.names.data)
    for name, values in columns(expected.annotations).items():
        np.testing.assert_array_equal(columns(found.annotations)[name], values, err_msg=name)
        assert columns(found.annotations)[name].dtype == values.dtype
    assert len(found.annotations.segmentations) == len(expected.annotations.segmentations)
    assert not found.annotations.segmentations.are_there.any()


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, "4"]},
        {"bbox": [1, 2, 3, True]},
        {"bbox": [1, 2, 3, 2**63]},
        {"bbox": None},
        {"id": 2**63},
        {"image_id": "1"},
        {"category_id": 1.5},
        {"iscrowd": 2},
        {"iscrowd": "0"},
        {"area": "3"},
        {"area": 2**64},
    ],
    ids=str,
)
def test_refused_as_by_the_full_reader(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "a.json", document(change))
    with pytest.raises(UserError) as expected:
        read_tables(path)
    with pytest.raises(UserError) as found:
        read_box_tables(path)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "change", [{"area": None}, {"area": float("nan")}, {"iscrowd": 1.0}, {"bbox": [1, 2, 3, 1e400]}]
)
def test_odd_values_are_read_by_the_full_reader(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "a.json", document(change))
    found, expected = read_box_tables(path).annotations, read_tables(path).annotations
    for name, values in columns(expected).items():
        np.testing.assert_array_equal(columns(found)[name], values, err_msg=name)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": 3}', "\ufeff{}"])
def test_broken_files_give_the_full_readers_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as expected:
        read_tables(path)
    with pytest.raises(UserError) as found:
        read_box_tables(path)
    assert str(found.value) == str(expected.value)


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", document({"id": 7}, {"id": 7}))
    with pytest.raises(UserError, match="annotation ids: expected each one once, got 7"):
        read_box_tables(path)


def test_real_annotations_are_equal(data_dir: Path) -> None:
    path = data_dir / "coco128" / "annotations" / "instances_train2017.json"
    found, expected = read_coco(path, with_masks=False), read_coco(path)
    for name in ("image_ids", "offsets", "boxes", "labels", "is_crowd", "areas", "rows_in_file"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert not found.segmentations.are_there.any()
