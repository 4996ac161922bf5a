"""Sizes and boxes of different frames: what is said about them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import UserError
from tests.detection.data.coco_data import open_data

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]


# A file of 40x60 (width x height) that an EXIF orientation turns: it is shown, and read, as 60x40.
TURNED: dict[str, tuple[list[float], list[float], str]] = {
    "the image as shown": (
        [35, 0, 22, 30],
        [0, 0, 10, 10],
        "2 of 2 boxes of this image fit 60x40, and 1 do not fit 40x60: they were drawn on the"
        " image as displayed; swap `width` and `height` of these images in the JSON",
    ),
    "the image unrotated": (
        [5, 30, 20, 29],
        [0, 0, 10, 10],
        "2 of 2 boxes of this image fit 40x60, and 1 do not fit 60x40: they were drawn on the image"
        " unrotated; remove the EXIF orientation from copies of the images",
    ),
    "either": (
        [5, 5, 20, 20],
        [0, 0, 10, 10],
        "all 2 boxes of this image fit both 40x60 and 60x40, so the orientation is unknown",
    ),
    "some of each": (
        [35, 0, 22, 30],
        [5, 30, 20, 29],
        "of 2 boxes of this image 1 fit 40x60 and 1 60x40, so the orientation",
    ),
}


def write_turned(document: Document, write_coco: CocoWriter, size: tuple[int, int]) -> Path:
    document["images"] = [{"id": 70, "file_name": "b.jpg", "height": size[0], "width": size[1]}]
    document["annotations"] = [dict(each, image_id=70) for each in document["annotations"][:2]]
    path = write_coco(document)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(path.parent / "b.jpg", exif=exif)
    return path


def test_exif_rotation(document: Document, write_coco: CocoWriter) -> None:
    path = write_turned(document, write_coco, (40, 60))
    assert open_data(path).load(0, 0).original_size == (40, 60)


@pytest.mark.parametrize(("first", "second", "expected"), TURNED.values(), ids=TURNED)
def test_boxes_tell_in_which_frame_they_are(
    document: Document,
    write_coco: CocoWriter,
    first: list[float],
    second: list[float],
    expected: str,
) -> None:
    document["annotations"][0]["bbox"] = first
    document["annotations"][1]["bbox"] = second
    path = write_turned(document, write_coco, (60, 40))
    with pytest.raises(UserError) as error:
        open_data(path).load(0, 0)
    start = (
        "expected 40x60 (width x height) as annotated, got 60x40 (width x height) after its EXIF"
    )
    assert str(error.value).startswith(f"{path.parent / 'b.jpg'}: {start} rotation; {expected}")
    assert str(error.value).endswith("; data.on_bad_image=skip skips it")


def test_all_turned_images_of_a_file_are_judged_together(
    document: Document, write_coco: CocoWriter
) -> None:
    document["images"][1] = {"id": 5, "file_name": "a.png", "height": 60, "width": 40}
    document["annotations"] = document["annotations"][1:]
    path = write_coco(document)  # a.png is 40x60, then 60x40 with no EXIF about it
    document["images"][0] |= {"height": 60, "width": 40}
    document["images"][1] |= {"height": 40, "width": 60}
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"got 60x40 \(width x height\); 2 of 2 boxes of 2 such"):
        open_data(path, on_bad_box="skip").load(0, 0)


def test_boxes_of_the_other_frame_are_counted(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"] = document["annotations"][:2]
    document["annotations"][0]["bbox"] = [20, 5, 28, 20]  # in an image of 30x50
    report = open_data(write_coco(document)).report
    assert report.swapped_images == 1
    assert ("images whose boxes fit only with width and height swapped", 1) in report.rows()
