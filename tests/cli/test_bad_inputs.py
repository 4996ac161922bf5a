"""Mistakes of the user: one line on stderr, exit code 2, no traceback."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.commands import evaluate as eval_tool
from detection.commands import predict
from detection.commands import train as train_det
from engine.checkpoint import save_checkpoint
from tests.cli.conftest import Call, Outcome

Document = dict[str, Any]


def assert_one_line(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def change_box(*box: float) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document["annotations"][1]["bbox"] = list(box)

    return change


def set_in(*path: str | int, value: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        parent: Any = document
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value

    return change


ANNOTATIONS = {
    "unknown image": (
        set_in("annotations", 0, "image_id", value=77),
        ["train.json", "annotation 1", "image_id", "77"],
    ),
    "unknown category": (
        set_in("annotations", 0, "category_id", value=77),
        ["train.json", "annotation 1", "0.jpg", "category_id", "77"],
    ),
    "box negative": (change_box(1, 2, -3, 4), ["train.json", "annotation 2", "1.jpg", "-3"]),
    "box zero": (change_box(1, 2, 3, 0), ["train.json", "annotation 2", "1.jpg", "height", "0"]),
    "box NaN": (change_box(1, 2, math.nan, 4), ["train.json", "annotation 2", "1.jpg", "nan"]),
    "box outside": (change_box(70, 2, 9, 9), ["train.json", "annotation 2", "1.jpg", "70"]),
    "box of three": (change_box(1, 2, 3), ["train.json", "annotation 2", "bbox", "[1, 2, 3]"]),
    "no annotations": (set_in("annotations", value=[]), ["train.json", "annotations", "none"]),
    "no images": (set_in("images", value=[]), ["train.json", "images", "none"]),
    "no categories": (set_in("categories", value=[]), ["train.json", "categories", "none"]),
    "categories of another shape": (
        set_in("categories", value={"1": "cow"}),
        ["train.json", "categories", "expected a list", "an object"],
    ),
    "image missing": (set_in("images", 0, "file_name", value="absent.jpg"), ["absent.jpg"]),
    "image of another size": (
        set_in("images", 0, "width", value=96),
        ["0.jpg", "96x64", "64x64"],
    ),
    "classes of another data set": (
        set_in("categories", 0, "name", value="bull"),
        ["val.json", "cow", "bull"],
    ),
}


@pytest.mark.parametrize(("change", "parts"), ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_training_annotations(
    site: Path, document: Document, call: Call, change: Callable[[Document], None], parts: list[str]
) -> None:
    change(document)
    (site / "data" / "train.json").write_text(json.dumps(document))
    assert_one_line(call(train_det, "tiny.yaml", "loop.batch_size=3"), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"images": [', ["not valid JSON", "line 1"]),
        ("[1, 2]", ["expected a COCO object", "list"]),
        ('{"images": []}', ["annotations", "expected a list", "nothing"]),
        ("\x00\x01", ["not valid JSON"]),
    ],
    ids=["cut", "list", "keys", "bytes"],
)
def test_training_json(site: Path, call: Call, text: str, parts: list[str]) -> None:
    (site / "data" / "train.json").write_text(text)
    assert_one_line(call(train_det, "tiny.yaml"), "data/train.json", *parts)


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_jpeg(site: Path, call: Call, workers: int) -> None:
    path = site / "data" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-900])
    arguments = ["tiny.yaml", "loop.batch_size=3", f"loader.workers={workers}"]
    assert_one_line(call(train_det, *arguments), "data/1.jpg", "whole JPEG")


TRAIN_ARGUMENTS = {
    "no config": (["absent.yaml"], ["absent.yaml: no such"]),
    "two configs": (["tiny.yaml", "other.yaml"], ["expected one config", "other.yaml"]),
    "config that is not YAML": (["data/0.jpg"], ["data/0.jpg"]),
    "key misspelt": (["tiny.yaml", "optim.lrr=1"], ["optim.lrr", "optim.lr"]),
    "key unknown": (["tiny.yaml", "model.depth=50"], ["model.depth"]),
    "wrong type": (["tiny.yaml", "loop.batch_size=many"], ["loop.batch_size", "many"]),
    "impossible value": (["tiny.yaml", "optim.lr=-1"], ["optim.lr", "-1"]),
    "impossible pair": (
        ["tiny.yaml", "model.rpn.bg_iou_thresh=0.9"],
        ["rpn.bg_iou_thresh", "rpn.fg_iou_thresh"],
    ),
    "VGG-16 with a pyramid": (
        ["tiny.yaml", "model.backbone.kind=vgg16"],
        ["neck.kind: expected c4 with backbone.kind=vgg16", "got fpn"],
    ),
    "no sizes": (["tiny.yaml", "data.augment.short_sides=[]"], ["short_sides", "1 item"]),
    "no anchors": (["tiny.yaml", "model.rpn.anchor_ratios=[]"], ["anchor_ratios", "1 item"]),
    "seed beyond 64 bits": (["tiny.yaml", f"seed={10**20}"], ["seed", "less than"]),
    "no training JSON": (
        ["tiny.yaml", "data.train.annotations=''"],
        ["data.train.annotations: expected a COCO JSON, got none"],
    ),
    "no validation JSON": (
        ["tiny.yaml", "data.val.annotations=''"],
        ["data.val.annotations: expected a COCO JSON, got none"],
    ),
    "folder without the images": (
        ["tiny.yaml", "data.val.images=."],
        ["expected the 3 images of data/val.json, got 0, without 0.jpg (no such file), 1.jpg"],
    ),
    "weights that are a folder": (
        ["tiny.yaml", "model.weights=data"],
        ["data: expected a weights file"],
    ),
    "task unknown": (["tiny.yaml", "task=dancing"], ["task", "detection", "dancing"]),
    "no such folder": (["tiny.yaml", "data.train.images=absent"], ["absent"]),
    "no such JSON": (["tiny.yaml", "data.val.annotations=absent.json"], ["absent.json"]),
    "no such weights": (["tiny.yaml", "model.backbone.weights=absent.pth"], ["absent.pth"]),
    "weights of another kind": (
        ["tiny.yaml", "model.backbone.weights=data/0.jpg"],
        ["data/0.jpg", "damaged or foreign"],
    ),
    "output below a file": (["tiny.yaml", "--output", "tiny.yaml/run"], ["tiny.yaml/run"]),
    "nothing to resume": (["tiny.yaml", "--resume"], ["--resume", "runs/tiny/checkpoints"]),
    "output is the current folder": (
        ["tiny.yaml", "--output", "."],
        ["--output", "for this run only"],
    ),
    "empty output": (["tiny.yaml", "--output", ""], ["--output", "this run only"]),
    "flag misspelt": (["tiny.yaml", "--outputs", "x"], ["--outputs", "--help"]),
    "flag without a value": (["tiny.yaml", "--device"], ["--device", "expected one argument"]),
    "no such device": (["tiny.yaml", "--device", "abacus"], ["device", "abacus"]),
}


@pytest.mark.parametrize(("arguments", "parts"), TRAIN_ARGUMENTS.values(), ids=TRAIN_ARGUMENTS)
@pytest.mark.usefixtures("site")
def test_training_command(call: Call, arguments: list[str], parts: list[str]) -> None:
    assert_one_line(call(train_det, *arguments), *parts)


def test_a_training_may_add_a_class_and_an_evaluation_may_not(
    site: Path, trained: Path, document: Document, call: Call
) -> None:
    document["categories"].append({"id": 30, "name": "owl"})
    for split in ("train", "val"):
        (site / "data" / f"{split}.json").write_text(json.dumps(document))
    weights = trained / "model.safetensors"
    started = call(train_det, "tiny.yaml", f"model.weights={weights}", "--output", "more")
    assert started.code == 0
    assert "2 carried over (cow, ant), 1 new at random (owl), 0 of the file dropped" in started.out
    arguments = ["data.val.images=data", "data.val.annotations=data/val.json"]
    outcome = call(eval_tool, trained, *arguments, "--output", "scores", "--device", "cpu")
    assert_one_line(outcome, "val.json", "owl")


def test_weights_of_another_network(site: Path, call: Call) -> None:
    save_checkpoint(site / "other.pth", {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    outcome = call(train_det, "tiny.yaml", "model.backbone.weights=other.pth")
    assert_one_line(outcome, "other.pth", "missing", "bn1.weight")


@pytest.fixture
def truncated_run(site: Path, trained: Path) -> Path:
    """A copy of the trained run with weights and checkpoints truncated to half their size."""
    run = site / "run"
    shutil.copytree(trained, run)
    for path in (run / "model.safetensors", *(run / "checkpoints").iterdir()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return run


def test_truncated_files(truncated_run: Path, call: Call) -> None:
    checkpoint = truncated_run / "checkpoints" / "step_00000002.pt"
    resumed = call(train_det, "--resume", "--output", truncated_run, "loop.max_steps=3")
    assert_one_line(resumed, "step_00000002.pt", "damaged")
    assert_one_line(call(eval_tool, checkpoint), "step_00000002.pt", "damaged")
    assert_one_line(call(eval_tool, truncated_run), "model.safetensors")
    assert_one_line(call(predict, truncated_run, "data"), "model.safetensors")


def test_a_failing_command_does_not_rename_the_earlier_run(
    site: Path, trained: Path, call: Call
) -> None:
    shutil.copytree(trained, site / "run")
    for arguments in (["--device", "abacus"], ["loop.batch_size=3", "loop.accumulate=2"]):
        outcome = call(train_det, "tiny.yaml", "--output", "run", *arguments)
        assert_one_line(outcome, arguments[-1].removeprefix("loop.accumulate="))
    assert not (site / "run.1").exists()


@pytest.mark.extended
def test_a_foreign_config_is_not_overwritten(site: Path, trained: Path, call: Call) -> None:
    (site / "mine").mkdir()
    (site / "mine" / "config.yaml").write_text("mine")
    arguments = ["tiny.yaml", "--output", "mine", "--device", "cpu"]
    assert_one_line(call(train_det, *arguments), "mine: expected an empty folder or a run folder")
    assert (site / "mine" / "config.yaml").read_text() == "mine"
    # the config of a run that failed before its first log line is overwritten, not kept
    shutil.copy(trained / "config.yaml", site / "mine")
    assert call(train_det, *arguments).code == 0
    assert not (site / "mine.1").exists()


def test_resuming_refuses_fewer_steps_and_other_classes(
    site: Path, trained: Path, document: Document, call: Call
) -> None:
    shutil.copytree(trained, site / "run")
    arguments = ["--resume", "--output", "run", "--device", "cpu"]
    outcome = call(train_det, *arguments, "loop.max_steps=1")
    assert_one_line(outcome, "loop.max_steps: expected at least the checkpoint's step, 2, got 1")
    for number, name in enumerate(("ant", "cow")):
        document["categories"][number]["name"] = name
    for split in ("train", "val"):
        (site / "data" / f"{split}.json").write_text(json.dumps(document))
    outcome = call(train_det, *arguments, "loop.max_steps=3")
    assert_one_line(outcome, "--resume: expected the checkpoint's class_names", "cow", "ant")


def test_checkpoint_of_another_network(site: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, site / "run")
    outcome = call(train_det, "--resume", "--output", "run", "model.neck.channels=16")
    assert_one_line(outcome, "does not fit the config's network")


EVAL_ARGUMENTS = {
    "nothing to score": ([], ["RUN_OR_CHECKPOINT", "--results"]),
    "no such run": (["absent"], ["absent: no such run"]),
    "folder without a run": (["data"], ["data: expected model.safetensors"]),
    "image in place of a run": (["data/0.jpg"], ["data/0.jpg", "damaged or foreign"]),
    "flag of results with a run": (
        ["run", "--all-images"],
        ["or --results FILE.json [--named-images]"],
    ),
    "run and results": (["run", "--results", "some.json"], ["expected RUN_OR_CHECKPOINT or"]),
    "results without annotations": (["--results", "some.json"], ["data.val.annotations=PATH"]),
    "no such results": (
        ["--results", "absent.json", "data.val.annotations=data/val.json"],
        ["absent.json: no such file"],
    ),
    "results that are annotations": (
        ["--results", "data/val.json", "data.val.annotations=data/val.json"],
        ["data/val.json: expected a list of detections, got an object"],
    ),
    "results of other images": (
        ["--results", "some.json", "data.val.annotations=data/val.json"],
        ["some.json: detection 0: image_id", "99"],
    ),
    "results with an unknown file name": (
        ["--results", "named.json", "data.val.annotations=data/val.json"],
        ["named.json: detection 0: file_name: expected the name of an image of", "got 'in/7.jpg'"],
    ),
    "mask results but annotations without masks": (
        ["--results", "masks.json", "data.val.annotations=data/val.json"],
        ["data/val.json: annotations[0]: segmentation: expected polygons or an RLE"],
    ),
    "key misspelt": (
        ["--results", "some.json", "data.val.annotation=data/val.json"],
        ["data.val.annotation", "data.val.annotations"],
    ),
    "output below a file": (
        [
            "--results",
            "empty.json",
            "data.val.annotations=data/val.json",
            "--output",
            "empty.json/x",
        ],
        ["empty.json/x"],
    ),
}


@pytest.mark.parametrize(("arguments", "parts"), EVAL_ARGUMENTS.values(), ids=EVAL_ARGUMENTS)
def test_evaluation_command(site: Path, call: Call, arguments: list[str], parts: list[str]) -> None:
    unknown_image = {"image_id": 99, "category_id": 4, "bbox": [1, 1, 9, 9], "score": 0.5}
    (site / "some.json").write_text(json.dumps([unknown_image]))
    (site / "masks.json").write_text(json.dumps([{**unknown_image, "bbox": [], "segmentation": 3}]))
    named = {**unknown_image, "image_id": 11, "file_name": "in/7.jpg"}
    (site / "named.json").write_text(json.dumps([named]))
    (site / "empty.json").write_text("[]")
    assert_one_line(call(eval_tool, *arguments), *parts)


PREDICT_ARGUMENTS = {
    "no such image": (["absent.jpg"], ["absent.jpg: no such image"]),
    "folder without images": (["empty"], ["empty: expected images"]),
    "file that is not an image": (["tiny.yaml"], ["tiny.yaml", "cannot be decoded"]),
    "truncated JPEG": (["half.jpg"], ["half.jpg", "whole JPEG"]),
    "score above one": (["data", "--score", "7"], ["--score", "7"]),
    "output that is a run": (["data", "--output", "run"], ["--output", "got a run: run"]),
    "folder with only its own drawings": (
        ["drawn", "--output", "drawn"],
        ["apart from those in drawn"],
    ),
    "output below a file": (["data", "--output", "tiny.yaml/out"], ["tiny.yaml/out"]),
    "no such device": (["data", "--device", "abacus"], ["device", "abacus"]),
}


@pytest.mark.parametrize(("arguments", "parts"), PREDICT_ARGUMENTS.values(), ids=PREDICT_ARGUMENTS)
def test_prediction_command(
    site: Path, trained: Path, call: Call, arguments: list[str], parts: list[str]
) -> None:
    whole = (site / "data" / "0.jpg").read_bytes()
    (site / "half.jpg").write_bytes(whole[: len(whole) // 2])
    for name, file in (("empty", "x.txt"), ("run", "checkpoints"), ("drawn", "0.jpg")):
        (site / name).mkdir()
        (site / name / file).write_bytes(whole)
    assert_one_line(call(predict, trained, *arguments), *parts)


def test_damaged_images_are_skipped_with_skip_bad(site: Path, trained: Path, call: Call) -> None:
    whole = (site / "data" / "0.jpg").read_bytes()
    (site / "mixed").mkdir()
    for name, size in (("a.jpg", len(whole)), ("b.jpg", len(whole) // 2), ("c.jpg", len(whole))):
        (site / "mixed" / name).write_bytes(whole[:size])
    arguments = ("mixed", "--output", "found", "--score", "0", "--skip-bad")
    outcome = call(predict, trained, *arguments)
    assert outcome.code == 0
    assert "skipped: mixed/b.jpg" in outcome.out
    assert "in 2 images: found" in outcome.out
    entries = json.loads((site / "found" / "detections.json").read_text())
    named = {(entry["image_id"], entry["file_name"]) for entry in entries}
    assert named == {(0, "mixed/a.jpg"), (2, "mixed/c.jpg")}
    assert sorted(path.name for path in (site / "found").iterdir()) == [
        "a.jpg",
        "c.jpg",
        "detections.json",
    ]
