"""Where images are looked for, and what is said where they are not."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detection.data.image_files import image_path
from engine.errors import SkippedSampleError, UserError
from tests.detection.data.coco_data import open_data

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]


SPELLINGS = [
    *(
        "/a.png",
        "//a.png",
        "./a.png",
        "x/../a.png",
        ".//a.png",
        "a.png/",
        "deep\\a.png",
        "deep//a.png",
    ),
    *("/deep/a.png", "\\deep\\a.png", "deep/../a.png", "../{folder}/a.png", "{absolute}"),
]


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_check_and_the_reader_find_the_same_file(
    document: Document, write_coco: CocoWriter, spelling: str, training: bool
) -> None:
    path = write_coco(document)
    (path.parent / "deep").mkdir()
    (path.parent / "deep" / "a.png").write_bytes((path.parent / "a.png").read_bytes())
    (path.parent / "x").mkdir()
    name = spelling.format(folder=path.parent.name, absolute=path.parent / "a.png")
    document["images"][1]["file_name"] = name
    path.write_text(json.dumps(document))
    data = open_data(path, training=training)
    data.check_images()
    assert data.load(1, 0).original_size == (50, 30)
    assert data.report.missing == ()


def test_a_slash_is_read_from_the_folder_first(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    outside = path.parent / "b.png"
    inside = path.parent / f".{outside}"
    inside.parent.mkdir(parents=True)
    inside.write_bytes((path.parent / "a.png").read_bytes())
    assert image_path(path.parent, str(outside)) == inside
    inside.unlink()
    assert image_path(path.parent, str(outside)) == outside
    literal = path.parent / "deep\\a.png"
    literal.write_bytes(b"")
    assert image_path(path.parent, literal.name) == literal


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


ABSENT: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "none": ("c.png", lambda _: None, "no such file"),
    "trailing space": ("a.png ", lambda _: None, "no such file"),
    "outside": ("../none/a.png", lambda _: None, "no such file"),
    "absolute": ("/none/a.png", lambda _: None, "no such file"),
    "drive": ("C:\\images\\a.png", lambda _: None, "no such file"),
    "address": ("http://x.org/a.png", lambda _: None, "no such file"),
    "folder": ("sub", Path.mkdir, "expected a file, got a folder"),
    "the images' folder": (".", lambda _: None, "expected a file, got a folder"),
    "root": ("/", lambda _: None, "expected a file, got a folder"),
    "under a file": ("a.png/b.png", lambda _: None, "Not a directory"),
    "FIFO": ("pipe.png", make_fifo, "expected a file, got a FIFO"),
    "broken link": ("link.png", lambda path: path.symlink_to("none"), "no such file"),
    "circle": ("loop.png", lambda path: path.symlink_to("loop.png"), "Too many levels of symbolic"),
    "long": ("x" * 300, lambda _: None, "File name too long"),
    "NUL": ("a\0.png", lambda _: None, "expected a path, got one that cannot exist"),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize(("name", "make", "reason"), ABSENT.values(), ids=ABSENT)
def test_absent_images_are_all_named_or_skipped(
    document: Document,
    write_coco: CocoWriter,
    name: str,
    make: Callable[[Path], object],
    reason: str,
    training: bool,
) -> None:
    path = write_coco(document)
    document["images"][1]["file_name"] = name
    document["images"][2]["file_name"] = "gone.png"
    path.write_text(json.dumps(document))
    make(path.parent / name)
    with pytest.raises(UserError) as error:
        open_data(path, training=training).check_images()
    message = str(error.value)
    assert message.startswith(f"{path.parent}: expected the 3 images of {path}, got 1, without ")
    assert f"({reason}" in message
    assert message.endswith(", gone.png (no such file); data.on_bad_image=skip skips them")
    assert message.isprintable()
    data = open_data(path, training=training, on_bad_image="skip")
    data.check_images()
    assert len(data.report.missing) == 2
    assert any("images skipped: " in what and n == 2 for what, n in data.report.rows())
    assert data.load(0, 0).image_id == 70
    if training:
        assert data.image_ids.tolist() == [70]
        assert len(data) == len(data.groups) == 1
    else:  # they count, as images without detections
        assert data.image_ids.tolist() == [70, 5, 9]
        with pytest.raises(SkippedSampleError, match="missing at the start of the run"):
            data.load(1, 0)


def test_one_image_at_least_must_be_there(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    for image in path.parent.glob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match=r"got 0, without b\.png \(no such file\), a\.png"):
        open_data(path, on_bad_image="skip").check_images()
