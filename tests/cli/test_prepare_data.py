"""The data command: conversion to COCO, training and scoring on the result, error messages."""

import json
from pathlib import Path

import pytest

from detection.commands import data as prepare_data
from detection.commands import evaluate as eval_tool
from detection.commands import train as train_det
from tests.cli.conftest import Call
from tests.detection.datasets.voc_files import write_image, write_voc, write_xml

VOC = ["voc-to-coco", "voc", "--sets", "VOC2007/trainval", "VOC2012/trainval", "--output", "v.json"]


@pytest.fixture
def voc(site: Path) -> Path:
    """The tiny data set, and two years in VOC's layout in voc/."""
    write_voc(site / "voc", "VOC2007", {"trainval": "000001 000002"})
    write_voc(site / "voc", "VOC2012", {"trainval": "2008_000001"})
    return site


@pytest.mark.extended
def test_voc_is_converted_trained_on_and_scored(voc: Path, call: Call) -> None:
    outcome = call(prepare_data, *VOC)
    assert outcome.code == 0, outcome.err
    assert "v.json: file names are relative to voc" in outcome.out
    row = next(line for line in outcome.out.splitlines() if "difficult objects" in line)
    assert "3" in row
    document = json.loads((voc / "v.json").read_text())
    assert [len(document[key]) for key in ("images", "annotations", "categories")] == [3, 6, 20]
    data = [
        f"data.{split}.{key}" for split in ("train", "val") for key in ("images", "annotations")
    ]
    paths = [f"{key}={'voc' if key.endswith('images') else 'v.json'}" for key in data]
    arguments = ["tiny.yaml", *paths, "evaluation.protocols=[voc07]", "--output", "run"]
    outcome = call(train_det, *arguments, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert "3 difficult objects among them" in outcome.out
    assert "voc07_map" in outcome.out
    metrics = json.loads((voc / "run" / "metrics.json").read_text())
    assert metrics["voc07_ap/cow"] is None
    arguments = [
        "--results",
        "run/detections.json",
        "data.val.annotations=v.json",
        "--output",
        "again",
    ]
    outcome = call(eval_tool, *arguments, "evaluation.protocols=[voc07]")
    assert outcome.code == 0, outcome.err
    assert json.loads((voc / "again" / "metrics.json").read_text()) == metrics


def test_results_are_scored_with_all_protocols(voc: Path, call: Call) -> None:
    call(prepare_data, *VOC)
    cat = {"image_id": 1, "category_id": 8, "bbox": [0, 0, 30, 20], "score": 0.9}
    dog = {"image_id": 1, "category_id": 12, "bbox": [10, 20, 50, 20], "score": 0.8}
    (voc / "found.json").write_text(json.dumps([cat, dog]))
    arguments = ["--results", "found.json", "data.val.annotations=v.json", "--output", "scores"]
    outcome = call(
        eval_tool, *arguments, "--named-images", "evaluation.protocols=[voc07,voc12,ilsvrc]"
    )
    assert outcome.code == 0, outcome.err
    metrics = json.loads((voc / "scores" / "metrics.json").read_text())
    for protocol in ("voc07", "voc12", "ilsvrc"):
        assert metrics[f"{protocol}_map"] == metrics[f"{protocol}_ap/cat"] == 1
        assert metrics[f"{protocol}_ap/dog"] is None  # all dogs are difficult: nothing to find
    assert "3 difficult" not in outcome.out  # only those in the scored image are counted
    assert "1 difficult objects count like any other" in outcome.out


def test_an_existing_file_is_replaced_only_with_force(voc: Path, call: Call) -> None:
    (voc / "v.json").write_text("mine")
    outcome = call(prepare_data, *VOC)
    assert outcome.code == 2
    assert outcome.err == (
        "error: v.json: expected no such file yet, got one; --force replaces it\n"
    )
    assert (voc / "v.json").read_text() == "mine"
    assert call(prepare_data, *VOC, "--force").code == 0
    assert len(json.loads((voc / "v.json").read_text())["images"]) == 3


def test_dropped_objects_are_reported(site: Path, call: Call) -> None:
    write_xml(site / "xml" / "0.xml", [("cell", 5, 5, 20, 20, ""), ("cell", 9, 9, 9, 9, "")])
    write_image(site / "images" / "0.jpg")
    arguments = ["voc-to-coco", ".", "--xml", "xml", "--images", "images", "--boxes", "corners"]
    arguments += ["--output", "made/cells.json"]
    outcome = call(prepare_data, *arguments)
    assert outcome.code == 2
    message = "xml/0.xml: object 2 (cell): bbox width: expected at least 0.01 pixels, got 0"
    assert outcome.err == f"error: {message}; --on-bad-box skip drops it\n"
    assert not (site / "made").exists()
    outcome = call(prepare_data, *arguments, "--on-bad-box", "skip")
    assert outcome.code == 0, outcome.err
    assert message in outcome.out
    document = json.loads((site / "made" / "cells.json").read_text())
    assert [each["bbox"] for each in document["annotations"]] == [[5, 5, 15, 15]]
    assert document["images"][0]["file_name"] == "images/0.jpg"


def test_ilsvrc_is_converted(site: Path, call: Call) -> None:
    name = "ILSVRC2012_val_00000001"
    write_xml(site / f"il/Annotations/DET/val/{name}.xml", [("n02219486", 0, 0, 30, 20, "")])
    write_image(site / f"il/Data/DET/val/{name}.JPEG")
    (site / "map_det.txt").write_text("n02219486 3 ant\n")
    arguments = [
        "ilsvrc-to-coco",
        "il",
        "--sets",
        "val",
        "--names",
        "map_det.txt",
        "--output",
        "i.json",
    ]
    outcome = call(prepare_data, *arguments)
    assert outcome.code == 0, outcome.err
    document = json.loads((site / "i.json").read_text())
    assert document["categories"] == [{"id": 3, "name": "ant"}]
    assert document["annotations"][0]["bbox"] == [0, 0, 30, 20]


def test_existing_data_is_not_downloaded(site: Path, call: Call) -> None:
    folder = site / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(8):
        (folder / str(number)).touch()
    outcome = call(prepare_data, "download", "cifar10", "--root", "cifar")
    assert outcome.code == 0, outcome.err
    assert outcome.out == "cifar-10-python.tar.gz: already unpacked\n"


MISTAKES = {
    "no set": (["voc-to-coco", "voc", "--output", "v.json"], "expected either --sets or --xml"),
    "no list": (
        ["voc-to-coco", "voc", "--sets", "VOC2007/test", "--output", "v.json"],
        "voc/VOC2007/ImageSets/Main/test.txt: no such file",
    ),
    "no names": (
        ["ilsvrc-to-coco", "voc", "--sets", "val", "--names", "absent", "--output", "v.json"],
        "voc/Annotations/DET/val: expected XML files, got none",
    ),
    "output below a file": ([*VOC[:-1], "tiny.yaml/v.json"], "tiny.yaml: cannot be created"),
    "root below a file": (["download", "coco", "--root", "tiny.yaml/x"], "tiny.yaml/x: expected"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(voc: Path, call: Call, arguments: list[str], message: str) -> None:
    outcome = call(prepare_data, *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (voc / "v.json").exists()


def test_a_folder_is_packed_and_checked(site: Path, call: Call) -> None:
    for name in ("train/cat/1.png", "train/dog/2.jpg", "val/cat/3.jpg"):
        (site / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(site / "src" / name)
    arguments = ["pack", "src", "out", "--short-side", "10"]
    outcome = call(prepare_data, *arguments)
    assert outcome.code == 0, outcome.err
    assert "out: 3 images packed, 0 kept" in outcome.out
    assert (site / "out/train/cat/1.jpg").is_file()
    assert "0 images packed, 3 kept" in call(prepare_data, *arguments).out
    (site / "src/val/cat/4.jpg").write_bytes(b"no image")
    outcome = call(prepare_data, *arguments)
    assert outcome.code == 2
    assert "4.jpg" in outcome.err
    assert "--on-bad-image skip skips it" in outcome.err
    outcome = call(prepare_data, *arguments, "--on-bad-image", "skip")
    assert outcome.code == 0, outcome.err
    assert "skipped: src/val/cat/4.jpg" in outcome.out


def test_a_folder_is_packed_without_compression(site: Path, call: Call) -> None:
    (site / "src/train/cat").mkdir(parents=True)
    write_image(site / "src/train/cat/1.png")
    arguments = ["pack", "src", "out", "--format", "raw"]
    outcome = call(prepare_data, *arguments)
    assert outcome.code == 0, outcome.err
    assert (site / "out/train/cat/1.bmp").is_file()
    assert "0 images packed, 1 kept" in call(prepare_data, *arguments).out
    outcome = call(prepare_data, *arguments, "--quality", "90")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "--quality: expected none with --format raw, got 90" in outcome.err
    outcome = call(prepare_data, "pack", "src", "out")
    assert outcome.code == 2
    assert "choose another folder" in outcome.err
