"""The data command on COCO files: stats, show, split, merge."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detection.commands import data as prepare_data
from tests.cli.conftest import Call
from tests.detection.datasets.coco_files import make_content

OBJECTS = {
    "a/1.jpg": ["cat", "dog"],
    "a/2.jpg": ["cat"],
    "b/3.jpg": ["owl", "cat", "cat"],
    "b/4.jpg": [],
    "c/5.jpg": ["dog"],
    "c/6 é.png": ["dog", "owl"],
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with own.json and its images in images/; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "own.json", make_content(OBJECTS, info={"version": "1"}))
    rng = np.random.default_rng(0)
    for name in OBJECTS:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(60, 80, 3), dtype=np.uint8)
        path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def tree(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


SHOW = ["show", "own.json", "--images", "images", "--output", "seen", "--count", "4"]
SPLIT = ["split", "own.json", "--output", "parts"]


COMMANDS = {
    "stats": ["stats", "own.json", "--images", "images", "--output", "s"],
    "show": SHOW,
    "show strangest": [*SHOW, "--strangest", "--force"],
    "split": [*SPLIT, "--fractions", "0.5", "0.5", "--images", "images"],
    "merge": ["merge", "own.json", "own.json", "--prefix", "x", "y", "--output", "m.json"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_files_of_the_user_are_not_changed(data: Path, call: Call, arguments: list[str]) -> None:
    before = tree(data)
    outcome = call(prepare_data, *arguments)
    assert outcome.code == 0, outcome.err
    after = tree(data)
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)
    assert call(prepare_data, *arguments).code == (0 if "--force" in arguments else 2)


@pytest.mark.parametrize(
    "arguments",
    [*COMMANDS.values(), ["check", "own.json"], ["check", "absent.json", "--against", "own.json"]],
    ids=[*COMMANDS, "check", "check against"],
)
def test_reading_a_large_file_is_said(
    data: Path, call: Call, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "reading own.json (0 MB)"
    monkeypatch.setattr("detection.commands.data_inputs.LARGE_BYTES", 100)
    assert call(prepare_data, *arguments).out.count(line) == arguments.count("own.json")
    monkeypatch.setattr("detection.commands.data_inputs.LARGE_BYTES", 10**6)
    assert line not in call(prepare_data, *arguments, "--force").out


def test_stats(data: Path, call: Call) -> None:
    (data / "images" / "b" / "3.jpg").unlink()
    outcome = call(prepare_data, "stats", "own.json", "--images", "images", "--output", "s")
    assert outcome.code == 0, outcome.err
    assert "6 images, 1 of them without objects; 9 objects" in outcome.out
    assert "1 of 6 images cannot be read in images: b/3.jpg (no such file)" in outcome.out
    numbers = read(data / "s" / "stats.json")
    assert [each["objects"] for each in numbers["classes"]] == [4, 3, 2]
    image = cv2.imread(str(data / "s" / "stats.png"))
    assert image is not None
    assert image.std() > 10
    outcome = call(prepare_data, "stats", "own.json")
    assert outcome.code == 0, outcome.err


def test_stats_says_what_was_dropped(data: Path, call: Call) -> None:
    content = make_content(OBJECTS)
    content["annotations"][0]["bbox"] = [5, 5, 0, 9]
    write(data / "own.json", content)
    outcome = call(prepare_data, "stats", "own.json")
    assert outcome.code == 0, outcome.err
    assert "1 boxes dropped, no width or height: cat" in outcome.out


def test_show(data: Path, call: Call) -> None:
    (data / "images" / "a" / "2.jpg").write_bytes(b"no image")
    (data / "images" / "c" / "5.jpg").unlink()
    outcome = call(prepare_data, *SHOW[:-1], "10")
    assert outcome.code == 0, outcome.err
    names = [path.name for path in sorted((data / "seen" / "sheets").iterdir())]
    assert names == ["1_cat.jpg", "3_dog.jpg", "5_owl.jpg"]
    drawn = [path.name for path in sorted((data / "seen" / "drawn").iterdir())]
    assert drawn == ["1.jpg", "3.jpg", "4.jpg", "6 é.jpg"]
    assert "2 images skipped:" in outcome.out
    assert "images/c/5.jpg: no such file" in outcome.out
    assert "images/a/2.jpg: expected a whole image" in outcome.out
    again = call(prepare_data, *SHOW)
    assert again.code == 2
    assert "seen/drawn: expected an empty folder" in again.err


def test_show_some_classes(data: Path, call: Call) -> None:
    outcome = call(prepare_data, *SHOW, "--class", "owl", "--seed", "3")
    assert outcome.code == 0, outcome.err
    names = [path.name for path in sorted((data / "seen").rglob("*.jpg"))]
    assert names == ["3.jpg", "6 é.jpg", "5_owl.jpg"]
    outcome = call(prepare_data, *SHOW, "--class", "yak")
    assert outcome.code == 2
    assert outcome.err == "error: --class: expected a class of own.json (cat, dog, owl), got yak\n"


def test_images_of_another_size_are_skipped(data: Path, call: Call) -> None:
    content = make_content(OBJECTS)
    content["images"][0]["width"] = 90
    write(data / "own.json", content)
    outcome = call(prepare_data, *SHOW)
    assert outcome.code == 0, outcome.err
    message = "images/a/1.jpg: expected 90x60 (width x height) as annotated, got 80x60"
    assert message in outcome.out


def test_drawings_do_not_go_among_the_images(data: Path, call: Call) -> None:
    (data / "images" / "a").rename(data / "images" / "drawn")
    content = make_content({name.replace("a/", "drawn/"): each for name, each in OBJECTS.items()})
    write(data / "own.json", content)
    options = ["--images", "images", "--output", "images", "--force"]
    outcome = call(prepare_data, "show", "own.json", *options)
    assert outcome.code == 2
    assert "got the folder of the images" in outcome.err


def test_split(data: Path, call: Call) -> None:
    outcome = call(prepare_data, *SPLIT, "--counts", "3", "2", "--names", "fit", "held")
    assert outcome.code == 0, outcome.err
    parts = [read(data / "parts" / f"{name}.json") for name in ("fit", "held")]
    assert [len(part["images"]) for part in parts] == [3, 2]
    assert all(part["info"] == {"version": "1"} for part in parts)
    assert "own.json: 1 images are in no part" in outcome.out
    assert "compared by name only" in outcome.out


@pytest.mark.parametrize("options", [["--group-regex", "^(.)/"], ["--by", "place"]])
def test_split_in_groups(data: Path, call: Call, options: list[str]) -> None:
    content = make_content(OBJECTS)
    for image in content["images"]:
        image["place"] = image["file_name"][0]
    write(data / "own.json", content)
    outcome = call(prepare_data, *SPLIT, "--fractions", "0.34", "0.33", "0.33", *options)
    assert outcome.code == 0, outcome.err
    folders = [
        {image["file_name"][0] for image in read(data / "parts" / f"{name}.json")["images"]}
        for name in ("train", "val", "test")
    ]
    assert [len(each) for each in folders] == [1, 1, 1]
    assert "3 groups of images, none of them divided" in outcome.out


def test_leakage_is_refused(data: Path, call: Call) -> None:
    images = data / "images"
    with Image.open(images / "a" / "1.jpg") as image:  # other bytes, the same pixels
        image.save(images / "c" / "5.jpg", "PNG")
    (images / "b" / "3.jpg").write_bytes(b"no image")
    (images / "a" / "2.jpg").unlink()
    arguments = [*SPLIT, "--fractions", "0.5", "0.5", "--images", "images", "--workers", "0"]
    outcome = call(prepare_data, *arguments)
    assert outcome.code == 2
    assert "1 sets of equal images" in outcome.err
    assert "a/1.jpg = c/5.jpg" in outcome.err
    outcome = call(prepare_data, *arguments, "--allow-leakage")
    assert outcome.code == 0, outcome.err
    assert "1 sets of equal images are divided like others" in outcome.out
    assert "1 images cannot be read in images: compared by name only" in outcome.out
    assert "1 images cannot be decoded in images: compared by" in outcome.out
    outcome = call(prepare_data, *arguments, "--group-duplicates", "--force")
    assert outcome.code == 0, outcome.err
    names = [
        {image["file_name"] for image in read(data / "parts" / f"{name}.json")["images"]}
        for name in ("train", "val")
    ]
    assert any({"a/1.jpg", "c/5.jpg"} <= each for each in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --fractions --counts is required"),
        (["--fractions", "1", "1"], "--fractions: expected numbers above 0 whose sum is 1"),
        (["--counts", "4", "4"], "expected at most 6 images in all"),
        (["--counts", "1", "1", "1", "1"], "--names: expected 4 names"),
        (["--counts", "1", "1", "--names", "a", "A"], "expected different names"),
        (["--counts", "1", "1", "--names", "a", "../b"], "names of files without a folder"),
        (["--counts", "1", "1", "--by", "video"], "image a/1.jpg: video: expected a text"),
        (["--counts", "1", "1", "--images", "none"], "none: expected the folder of images"),
        (["--counts", "1", "1", "--names", "own", "x", "--output", "."], "got the input itself"),
    ],
)
def test_mistakes_of_split_are_one_line(
    data: Path, call: Call, arguments: list[str], message: str
) -> None:
    before = tree(data)
    outcome = call(prepare_data, *SPLIT, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert tree(data) == before


def test_merge(data: Path, call: Call) -> None:
    for name, part in (("x", {"1.jpg": ["cat"]}), ("y", {"1.jpg": ["owl", "owl"]})):
        write(data / f"{name}.json", make_content(part))
    arguments = ["merge", "x.json", "y.json", "--output", "new/all.json"]
    outcome = call(prepare_data, *arguments)
    assert outcome.code == 2
    assert "y.json: 1 file names are also in x.json: 1.jpg; --prefix puts" in outcome.err
    outcome = call(prepare_data, *arguments, "--prefix", "x", "y")
    assert outcome.code == 0, outcome.err
    assert "written: new/all.json: 2 images, 3 annotations, 3 categories" in outcome.out
    names = [image["file_name"] for image in read(data / "new" / "all.json")["images"]]
    assert names == ["x/1.jpg", "y/1.jpg"]
    outcome = call(prepare_data, *arguments, "--on-same-image", "join", "--force")
    assert outcome.code == 0, outcome.err
    assert len(read(data / "new" / "all.json")["images"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own.json", "--output", "m.json"], "expected two JSON files or more, got 1"),
        (["own.json", "b.json", "--output", "m.json"], "b.json: no such file"),
        (["own.json", "own.json", "--output", "m.json", "--prefix", "x"], "--prefix: expected 2"),
        (["own.json", "own.json", "--output", "own.json", "--force"], "got the input itself"),
    ],
)
def test_mistakes_of_merge_are_one_line(
    data: Path, call: Call, arguments: list[str], message: str
) -> None:
    before = tree(data)
    outcome = call(prepare_data, "merge", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert tree(data) == before
