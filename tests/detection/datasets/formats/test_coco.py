"""COCO JSON as a source: Roboflow's export, and what is kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, rows_of, write_files

BOX = {"bbox": [5, 6, 20, 10], "area": 200, "segmentation": [], "iscrowd": 0}


def roboflow(**changes: Any) -> dict[str, Any]:
    """Return what Roboflow's "COCO" export of 2024 has: a class 0 that is the project's name."""
    image = {"id": 0, "license": 1, "file_name": "a_jpg.rf.0a.jpg", "height": 40, "width": 60}
    return {
        "info": {"year": "2024", "version": "1", "description": "Exported from roboflow.com"},
        "categories": [
            {"id": 0, "name": "pets", "supercategory": "none"},
            {"id": 1, "name": "dog", "supercategory": "pets"},
            {"id": 2, "name": "cat", "supercategory": "pets"},
        ],
        "images": [image],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 2, **BOX}],
    } | changes


def test_roboflows_dummy_class_is_dropped_and_said(tmp_path: Path) -> None:
    write_files(tmp_path, {"train/_annotations.coco.json": json.dumps(roboflow())})
    checked = read_checked(tmp_path, "roboflow")
    assert rows_of(checked) == [("train/a_jpg.rf.0a.jpg", "cat", [5, 6, 20, 10])]
    assert list(checked.classes) == ["dog", "cat"]
    what = "dropped, class without objects that is the supercategory of all others"
    assert dict(checked.rows)[what] == 1


def test_a_class_0_with_objects_is_kept(tmp_path: Path) -> None:
    used = [{"id": 0, "image_id": 0, "category_id": 0, **BOX}]
    write_files(tmp_path, {"train/_annotations.coco.json": json.dumps(roboflow(annotations=used))})
    assert list(read_checked(tmp_path, "roboflow").classes) == ["pets", "dog", "cat"]


def test_splits(tmp_path: Path) -> None:
    names = ("train", "valid")
    write_files(tmp_path, {f"{n}/_annotations.coco.json": json.dumps(roboflow()) for n in names})
    with pytest.raises(UserError, match="--split: expected one of train, valid, all"):
        read_checked(tmp_path, "roboflow")
    rows = rows_of(read_checked(tmp_path, "roboflow", split="all"))
    assert [row[0].split("/")[0] for row in rows] == ["train", "valid"]


@pytest.mark.parametrize("split", [None, "train", "all"])
def test_folder_without_roboflows_file(tmp_path: Path, split: str | None) -> None:
    write_files(tmp_path, {"annotations/instances_train.json": json.dumps(roboflow())})
    with pytest.raises(UserError, match=r"or a folder with _annotations\.coco\.json, got a folder"):
        read_checked(tmp_path, "coco", split=split)
