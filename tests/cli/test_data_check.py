"""The command `data check`: output, exit codes, files, messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from detection.commands import data as prepare_data
from detection.commands import train as train_det
from tests.cli.conftest import Call

Document = dict[str, Any]


def change(path: Path, document: Document) -> None:
    """Break four entries, each in another way."""
    document["annotations"] = [
        *document["annotations"],
        {"id": 3, "image_id": 12, "category_id": 4, "bbox": [5, 5, 0, 4]},
        {"id": 3, "image_id": 12, "category_id": 4, "bbox": [5, 5, 9, 9]},
        {"id": 5, "image_id": 99, "category_id": 4, "bbox": [5, 5, 9, 9]},
        {"id": 6, "image_id": 12, "category_id": 9, "bbox": [50, 50, 20, 9]},
    ]
    path.write_text(json.dumps(document))


def test_findings_are_listed_worst_first(site: Path, document: Document, call: Call) -> None:
    change(site / "a.json", document)
    content = (site / "a.json").read_bytes()
    outcome = call(prepare_data, "check", "a.json", "--images", "data", "--output", "r.json")
    assert outcome.code == 0, outcome.err
    assert "a.json: 3 images, 6 annotations, 2 classes: 3 errors" in outcome.out
    assert "2.jpg, image 12, annotation 3: bbox width: expected at least" in outcome.out
    report = json.loads((site / "r.json").read_text())
    severities = [finding["severity"] for finding in report["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    found = {finding["code"]: finding["count"] for finding in report["findings"]}
    for code in ("box-without-size", "repeated-annotation-id", "unknown-image", "box-clipped"):
        assert found[code] == 1
    assert (site / "a.json").read_bytes() == content


@pytest.mark.extended
def test_a_repaired_copy_trains(site: Path, document: Document, call: Call) -> None:
    change(site / "data" / "broken.json", document)
    key = "data.train.annotations"
    train = ["tiny.yaml", "--device", "cpu", "--output"]
    assert call(train_det, *train, "run", f"{key}=data/broken.json").code == 2
    arguments = ["check", "data/broken.json", "--images", "data", "--fix", "data/mended.json"]
    outcome = call(prepare_data, *arguments, "--strict", "--config", "tiny.yaml")
    assert outcome.code == 2
    assert "data/mended.json: repaired copy, " in outcome.out
    changes = json.loads((site / "data" / "mended.changes.json").read_text())
    assert {change["finding"] for change in changes} >= {"box-without-size", "unknown-image"}
    outcome = call(train_det, *train, "run2", f"{key}=data/mended.json")
    assert outcome.code == 0, outcome.err


def test_strict_is_one_line(site: Path, document: Document, call: Call) -> None:
    change(site / "a.json", document)
    outcome = call(prepare_data, "check", "a.json", "--strict")
    assert outcome.code == 2
    assert outcome.err.startswith("error: a.json: expected no errors and warnings (--strict), ")
    assert outcome.err.count("\n") == 1


def test_no_findings_say_so(site: Path, call: Call) -> None:
    boxes = [[2 + 3 * i, 2, 30, 30] for i in range(11)]
    document = {
        "images": [{"id": 1, "file_name": "0.jpg", "width": 64, "height": 64}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 900, "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "ant"}],
    }
    (site / "a.json").write_text(json.dumps(document))
    outcome = call(prepare_data, "check", "a.json", "--images", "data", "--strict")
    assert outcome.code == 0, outcome.out
    assert outcome.out == "a.json: 1 images, 11 annotations, 1 classes: No findings\n"


def test_sizes_and_anchors_are_those_of_the_config(site: Path, call: Call) -> None:
    outcome = call(prepare_data, "check", "data/train.json", "--config", "tiny.yaml")
    assert "best anchor" not in outcome.out
    far = "model.rpn.anchor_sizes=[300,400,500,600,700]"
    outcome = call(prepare_data, "check", "data/train.json", "--config", "tiny.yaml", far)
    assert (
        "objects whose best anchor has IoU < 0.5: 100.0% of the objects; 0.0% with" in outcome.out
    )


MISTAKES = {
    "no file": (["absent.json"], "absent.json: no such file"),
    "no folder": (
        ["data/train.json", "--images", "absent"],
        "absent: expected the folder of images",
    ),
    "two files": (["data/train.json", "data/val.json"], "expected one JSON, got 2"),
    "not JSON": (["tiny.yaml"], "tiny.yaml: not valid JSON"),
    "the input": (["data/train.json", "--fix", "data/../data/train.json"], "got the input itself"),
    "the other": (
        ["data/train.json", "--against", "data/val.json", "--output", "data/val.json"],
        "got the input itself",
    ),
    "existing": (["data/train.json", "--fix", "tiny.yaml"], "--force replaces it"),
    "no other": (["data/train.json", "--against-images", "data"], "expected --against too"),
    "workers": (["data/train.json", "--workers", "-1"], "--workers: expected 0 or more, got -1"),
    "wrong key": (["data/train.json", "data.eval_side=3"], "eval_side"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(site: Path, call: Call, arguments: list[str], message: str) -> None:
    before = (site / "data" / "train.json").read_bytes()
    outcome = call(prepare_data, "check", *arguments)
    assert outcome.code == 2, outcome.out
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert (site / "data" / "train.json").read_bytes() == before


def test_folders_of_outputs_are_created_before_the_check(
    site: Path, document: Document, call: Call
) -> None:
    change(site / "a.json", document)
    outcome = call(prepare_data, "check", "a.json", "--fix", "new/f.json", "--output", "x/y/r.json")
    assert outcome.code == 0, outcome.err
    for name in ("new/f.json", "new/f.changes.json", "x/y/r.json"):
        assert json.loads((site / name).read_text())
    outcome = call(prepare_data, "check", "a.json", "--fix", "tiny.yaml/f.json")
    assert outcome.code == 2
    assert outcome.err == "error: tiny.yaml: expected a writable folder, got a file\n"
