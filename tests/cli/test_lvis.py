"""Files in LVIS's format: trained on, evaluated and scored with nothing but their paths."""

import copy
import json
from pathlib import Path

import pytest

from detection.commands import data as prepare_data
from detection.commands import evaluate as eval_tool
from detection.commands import train as train_det
from tests.cli.conftest import DOCUMENT, Call

LVIS = ["data.val.images=.", "data.val.annotations=lvis.json", "evaluation.protocols=[lvis]"]
TRAIN = ["data.train.images=.", "data.train.annotations=lvis.json", "data.repeat_thresh=0.8"]


@pytest.fixture
def lvis(site: Path) -> Path:
    """The tiny data set as LVIS writes it: lvis.json, without a `file_name`."""
    document = copy.deepcopy(DOCUMENT)
    for image in document["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/data/{image.pop('file_name')}"
        image |= {"neg_category_ids": [9], "not_exhaustive_category_ids": []}
    for category, frequency in zip(document["categories"], "rf", strict=True):
        category["frequency"] = frequency
    (site / "lvis.json").write_text(json.dumps(document))
    return site


def test_results_are_scored(lvis: Path, call: Call) -> None:
    cow = {"image_id": 10, "category_id": 4, "bbox": [5, 5, 30, 40], "score": 0.9}
    ant = {"image_id": 10, "category_id": 9, "bbox": [5, 5, 30, 40], "score": 0.8}
    (lvis / "found.json").write_text(json.dumps([cow, ant]))
    outcome = call(eval_tool, "--results", "found.json", *LVIS[1:], "--output", "scores")
    assert outcome.code == 0, outcome.err
    assert "LVIS AP of boxes, in percent, by hotcoco" in outcome.out
    metrics = json.loads((lvis / "scores" / "metrics.json").read_text())
    assert metrics["lvis_ap"] == pytest.approx(0.5)
    assert metrics["lvis_ap_rare"] == pytest.approx(1)
    assert metrics["lvis_ap_frequent"] == 0
    assert metrics["lvis_ap_common"] is None


def test_other_files_are_one_line(lvis: Path, call: Call) -> None:
    (lvis / "found.json").write_text("[]")
    arguments = ["data.val.annotations=data/val.json", LVIS[2]]
    outcome = call(eval_tool, "--results", "found.json", *arguments)
    assert outcome.code == 2
    assert outcome.err == (
        "error: data/val.json: category 'cow': frequency: expected r, c or f as in LVIS "
        "(evaluation.protocols: lvis), got nothing\n"
    )


def test_a_crowd_region_is_found_before_training(lvis: Path, call: Call) -> None:
    document = json.loads((lvis / "lvis.json").read_text())
    document["annotations"][0]["iscrowd"] = 1
    (lvis / "lvis.json").write_text(json.dumps(document))
    outcome = call(train_det, "tiny.yaml", *LVIS, *TRAIN, "--output", "run", "--device", "cpu")
    assert outcome.code == 2
    assert "iscrowd: expected 0, as in LVIS (evaluation.protocols: lvis), got 1" in outcome.err
    assert "step" not in outcome.out


@pytest.mark.extended
def test_training_needs_nothing_but_the_paths(lvis: Path, call: Call) -> None:
    outcome = call(train_det, "tiny.yaml", *LVIS, *TRAIN, "--output", "run", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    lines = " ".join(outcome.out.split())
    assert "training data: data.repeat_thresh=0.8 repeats 2 of 3 images" in lines
    assert "model.roi.max_detections=5 returns fewer" in lines
    metrics = json.loads((lvis / "run" / "metrics.json").read_text())
    again = call(eval_tool, "run", "--device", "cpu")
    assert again.code == 0, again.err
    assert json.loads((lvis / "run" / "eval" / "metrics.json").read_text()) == metrics
    outcome = call(eval_tool, "--results", "run/detections.json", *LVIS[1:], "--output", "file")
    assert outcome.code == 0, outcome.err
    assert json.loads((lvis / "file" / "metrics.json").read_text()) == metrics


def test_data_commands_know_the_names(lvis: Path, call: Call) -> None:
    outcome = call(prepare_data, "check", "lvis.json", "--images", ".")
    assert outcome.code == 0, outcome.err
    assert "without a file name" not in outcome.out
    assert "missing" not in outcome.out
    split = ["--fractions", "0.7", "0.3", "--names", "a", "b", "--output", "."]
    outcome = call(prepare_data, "split", "lvis.json", *split)
    assert outcome.code == 0, outcome.err
    images = [
        image
        for name in "ab"
        for image in json.loads((lvis / f"{name}.json").read_text())["images"]
    ]
    assert sorted(image["file_name"] for image in images) == [f"data/{i}.jpg" for i in range(3)]
    assert all("neg_category_ids" in image for image in images)
