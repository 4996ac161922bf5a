"""Images of LVIS's files, which have a URL in place of a file name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.data.coco import read_coco
from detection.data.coco_json import image_name
from engine.errors import UserError

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]
URL = "http://images.cocodataset.org/train2017/000000391895.jpg"


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"coco_url": URL}, "train2017/000000391895.jpg"),
        ({"coco_url": URL, "file_name": "a.jpg"}, "a.jpg"),
        ({"coco_url": "a.jpg"}, "a.jpg"),
        ({"coco_url": URL, "file_name": None}, None),
        ({"coco_url": 7}, None),
        ({"coco_url": ""}, None),
        ({}, None),
    ],
)
def test_names(entry: dict[str, Any], name: str | None) -> None:
    assert image_name(entry) == name


@pytest.mark.parametrize("options", [{}, {"cache_from": 0}, {"with_masks": False}])
def test_all_readers_know_them(
    document: Document, write_coco: CocoWriter, options: dict[str, Any]
) -> None:
    path = write_coco(document)
    for image in document["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    path.write_text(json.dumps(document))
    for _ in range(2):  # with a cache, the second time from the copy
        found = read_coco(path, **options)
        names = [found.file_name(row) for row in range(len(found))]
        assert names == ["val2017/b.png", "val2017/a.png", "val2017/empty.png"]


def test_an_image_with_neither_is_refused(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    del document["images"][1]["file_name"]
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"images\[1\]: file_name: expected a name, got nothing"):
        read_coco(path)
