"""The command `data convert`: exit codes, one-line errors, what it says, what it leaves alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from detection.commands import data_convert
from detection.data.coco import read_coco
from tests.cli.conftest import Call

TARGETS = {"voc": "out", "yolo": "out", "csv": "out.csv", "labelme": "out", "via": "out.json"}
TARGETS |= {"cvat": "out.xml"}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", TARGETS)
def test_there_and_back(site: Path, call: Call, name: str) -> None:
    before = bytes_of(site)
    output = TARGETS[name]
    outcome = call(data_convert, "data/train.json", "--to", name, "--output", output)
    assert outcome.code == 0, outcome.err
    arguments = [output, "--output", "new/back.json", "--images", "data"]
    arguments += ["--boxes", "corners"] if name == "voc" else []
    outcome = call(data_convert, *arguments)
    assert outcome.code == 0, outcome.err
    assert f"{output}: read as {name}, because " in outcome.out
    assert "new/back.json: file names are relative to data" in outcome.out
    after = bytes_of(site)
    assert {path: after[path] for path in before} == before
    annotations = read_coco("new/back.json")
    assert annotations.classes.names == ("cow", "ant")
    assert [annotations.file_name(row) for row in range(3)] == ["0.jpg", "1.jpg", "2.jpg"]
    assert annotations.boxes.round(3).tolist() == [[5, 5, 35, 45], [20, 10, 45, 35]]


@pytest.mark.parametrize("name", TARGETS)
def test_existing_files_are_replaced_only_with_force(site: Path, call: Call, name: str) -> None:
    arguments = ["data/train.json", "--to", name, "--output", TARGETS[name]]
    assert call(data_convert, *arguments).code == 0
    before = bytes_of(site)
    outcome = call(data_convert, *arguments)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "--force replaces" in outcome.err
    assert bytes_of(site) == before
    assert call(data_convert, *arguments, "--force").code == 0
    assert bytes_of(site) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "--output", "o.json"], "error: absent: no such file or folder\n"),
        (["absent", "--from", "voc", "--output", "o.json"], "error: absent: no such file or"),
        (
            ["data/train.json", "--from", "x", "--output", "o"],
            "error: command line: argument --from",
        ),
        (["data/train.json", "--from", "cvat", "--output", "o"], "not valid XML"),
        (["data/train.json", "--from", "voc", "--output", "o"], "expected a folder of XML files"),
        (
            ["data/train.json", "--from", "via", "--output", "o"],
            "expected a project or annotations",
        ),
        (["data/train.json", "--from", "csv", "--output", "o"], "expected columns filename"),
        (["data/0.jpg", "--output", "o"], "expected UTF-8 text"),
        (["data", "--from", "masks", "--output", "o"], "expected PNG masks, got none"),
        (["data", "--from", "yolo", "--output", "o"], "expected class names in data.yaml"),
        (["data", "--from", "labelme", "--output", "o"], "expected LabelMe's JSON files, got none"),
        (["data/train.json", "--to", "masks", "--output", "o"], "got only boxes"),
        (["data/train.json", "--images", "nowhere", "--output", "o"], "nowhere/: cannot be read"),
    ],
)
def test_mistakes_are_one_line(site: Path, call: Call, arguments: list[str], message: str) -> None:
    before = bytes_of(site)
    outcome = call(data_convert, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert bytes_of(site) == before


def test_bad_boxes_are_dropped_on_request(site: Path, call: Call, document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"] = [5, 5, 0, 40]
    (site / "bad.json").write_text(json.dumps(document))
    arguments = ["bad.json", "--to", "csv", "--output", "b.csv"]
    outcome = call(data_convert, *arguments)
    assert outcome.code == 2
    expected = "bad.json: annotation 1: bbox width: expected at least 0.01 pixels, got 0"
    assert outcome.err == f"error: {expected}; --on-bad-box skip drops it\n"
    outcome = call(data_convert, *arguments, "--on-bad-box", "skip")
    assert outcome.code == 0
    assert expected in outcome.out
    assert (site / "b.csv").read_text().splitlines()[1:] == [
        "0.jpg,64,64,,,,,",
        "1.jpg,64,64,ant,20,10,45,35",
        "2.jpg,64,64,,,,,",
    ]


def test_images_are_linked(site: Path, call: Call) -> None:
    arguments = ["data/train.json", "--to", "yolo", "--output", "y", "--images", "data"]
    outcome = call(data_convert, *arguments, "--copy-images", "link")
    assert outcome.code == 0, outcome.err
    assert "y/images: 3 images" in outcome.out
    assert (site / "y/images/0.jpg").is_symlink()
    assert call(data_convert, "y", "--output", "back.json").code == 0
    assert len(read_coco("back.json")) == 3


@pytest.mark.parametrize(
    ("output", "target"), [("data/train.json", "via"), ("data", "labelme"), (".", "voc")]
)
def test_the_source_is_not_replaced(site: Path, call: Call, output: str, target: str) -> None:
    before = bytes_of(site)
    outcome = call(data_convert, "data/train.json", "--to", target, "--output", output, "--force")
    assert outcome.code == 2
    expected = "--output: expected a place apart from the source data/train.json"
    assert outcome.err == f"error: {expected}, got {output}\n"
    assert bytes_of(site) == before
