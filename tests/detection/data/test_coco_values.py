"""Values that no file should have: each is one line, or is read as what it means."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.config import DataConfig, SplitConfig
from detection.data.coco import read_coco
from detection.data.dataset import CocoDetection
from detection.evaluation.ground_truth import read_ground_truth
from engine.errors import UserError

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]


def message_of(
    document: Document, write_coco: CocoWriter, key: str, row: int, **values: Any
) -> str:
    path = write_coco(document)
    document[key][row].update(values)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError) as error:
        read_coco(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).isprintable()
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("area", [math.nan, math.inf, -math.inf, -150.5, 1e300])
def test_an_area_that_no_object_has(
    document: Document, write_coco: CocoWriter, area: float
) -> None:
    got = message_of(document, write_coco, "annotations", 0, area=area)
    shown = "inf" if area == 1e300 else f"{area:g}"
    assert got == (
        "annotation 11 of image a.png: area: expected a finite number of 0 or more, got"
        f" {shown} (1 bad in all; data.on_bad_box=skip drops them)"
    )
    path = write_coco(document)
    report = read_coco(path, on_bad_box="skip").report
    assert report.dropped == {("area negative or not finite", "cow"): 1}
    if area != 1e300:  # larger than float32 holds, not than JSON
        with pytest.raises(UserError, match="annotation 11: area: expected a finite number"):
            read_ground_truth(path)


@pytest.mark.parametrize(
    ("width", "height"), [(10**9, 1), (1, 10**9), (10**6, 10**6), (2**62, 2**62)]
)
def test_a_size_that_no_memory_holds(
    document: Document, write_coco: CocoWriter, width: int, height: int
) -> None:
    got = message_of(document, write_coco, "images", 0, width=width, height=height)
    assert got == (
        f"image b.png: expected a side of at most {2**20} pixels and {2**30} in total, got"
        f" {width}x{height} (width x height)"
    )
    with pytest.raises(UserError, match="image 70: expected a side of at most"):
        read_ground_truth(write_coco_text(document, write_coco), with_masks=True)


def write_coco_text(document: Document, write_coco: CocoWriter) -> Path:
    path = write_coco({"images": []})
    path.write_text(json.dumps(document))
    return path


CODES = ("a\nb", "cat\r", "\x1b[31mred", "\x00", "\x7f", "\x9b1m", "a\u2028b")


@pytest.mark.parametrize("name", CODES)
def test_class_names_hold_no_codes(document: Document, write_coco: CocoWriter, name: str) -> None:
    got = message_of(document, write_coco, "categories", 1, name=name)
    assert got == f"categories[1]: name: expected no control characters, got {name!r}"


@pytest.mark.parametrize("name", ["日本語", "na\u00a0me", "क्\u200dष", "👩\u200d🔬", "سيارة"])
def test_class_names_of_any_script_are_read(
    document: Document, write_coco: CocoWriter, name: str
) -> None:
    document["categories"][1]["name"] = name
    assert name in read_coco(write_coco(document)).classes.names


def test_file_names_are_shown_without_their_codes(
    document: Document, write_coco: CocoWriter
) -> None:
    document["images"][1]["file_name"] = "a\x1b[1m\n.png"
    got = message_of(document, write_coco, "annotations", 0, category_id=4)
    expected = "annotation 11 of image a\\x1b[1m\\n.png: category_id: no category has the id 4"
    assert got == expected


STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf),
    *("", "x", "\ud800", "\x00", "/", [], [[]], [None], [1, 2, 3, 4], [1e308] * 4, [[1, 2], "x"]),
    *({}, {"id": 1}, {"counts": 5, "size": [50, 30]}, {"counts": [2**70], "size": [50, 30]}),
    *([2**62] * 4, [[1, 2, 3, 4, 5, 6]], [{}], {"counts": "\ud800", "size": [50, 30]}),
]


KEYS = {
    "": ("images", "annotations", "categories", "info"),
    "images": ("id", "file_name", "height", "width", "license"),
    "categories": ("id", "name", "supercategory"),
    "annotations": (
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult", "ignore"),
        "segmentation",
    ),
}


@pytest.mark.parametrize(
    ("key", "with_masks"),
    [*((key, False) for key in KEYS), ("images", True), ("annotations", True)],
)
def test_any_value_at_any_key_is_read_or_one_line(
    document: Document, write_coco: CocoWriter, key: str, with_masks: bool
) -> None:
    path = write_coco(document)
    split = SplitConfig(images=str(path.parent), annotations=str(path))
    strict, lenient = DataConfig(), DataConfig(on_bad_box="skip", on_bad_image="skip")
    reads: list[Callable[[], Any]] = [
        lambda: CocoDetection(split, config=strict, training=True, with_masks=with_masks),
        lambda: CocoDetection(
            split, config=lenient, training=False, with_masks=with_masks
        ).check_images(),
        lambda: read_ground_truth(path, with_masks=with_masks),
    ]
    messages = []
    for name in KEYS[key]:
        entry = document[key][0] if key else document
        before = entry.get(name)
        for value in STRANGE:
            entry[name] = value
            path.write_text(json.dumps(document))
            for read in reads:
                try:
                    read()
                except UserError as error:
                    messages.append(str(error))
        entry[name] = before
    assert messages
    assert [message for message in messages if not message.isprintable()] == []
