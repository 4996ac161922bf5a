"""The commands eval and predict with several detectors and the additions at test, and refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backbones.classification.task import ClassificationTask
from detection.commands import evaluate as eval_tool
from detection.commands import predict as predict_tool
from detection.commands.tasks import build_task
from engine.checkpoint import read_safetensors, write_safetensors
from tests.backbones.classification import tiny as classification
from tests.cli.conftest import Call
from tests.detection.localization.tiny_localizer import tiny_config, write_tiny_imagenet

DEVICE = ("--device", "cpu")


@pytest.mark.parametrize(
    "keys",
    [
        ["evaluation.scales=[48,64,96]"],
        ["evaluation.scales=[48,96]", "evaluation.merge=union", "evaluation.mirror=true"],
    ],
    ids=["maxout", "union"],
)
def test_runs_are_evaluated_together_with_everything(
    site: Path, trained: Path, call: Call, keys: list[str]
) -> None:
    everything = ["evaluation.refine_boxes=true", *keys]
    outcome = call(eval_tool, trained, trained, *everything, "--output", "out", *DEVICE)
    assert outcome.code == 0, outcome.err
    assert "ap50" in outcome.out
    found: list[dict[str, Any]] = json.loads((site / "out" / "detections.json").read_text())
    assert {entry["image_id"] for entry in found} == {10, 11, 12}
    plain = json.loads((trained / "detections.json").read_text())
    assert found != plain


def test_runs_predict_together_and_a_folder_of_weights_alone_is_a_run(
    site: Path, trained: Path, call: Call
) -> None:
    weights = site / "weights"
    weights.mkdir()
    shutil.copy(trained / "model.safetensors", weights)
    outcome = call(predict_tool, trained, weights, "data", "--output", "out", *DEVICE)
    assert outcome.code == 0, outcome.err
    assert "ensemble of 2 detectors" in outcome.out
    assert "in 3 images: out" in outcome.out


def test_one_run_at_its_own_scale_gives_the_metrics_of_training(
    site: Path, trained: Path, call: Call
) -> None:
    outcome = call(eval_tool, trained, "evaluation.scales=[64]", "--output", "out", *DEVICE)
    assert outcome.code == 0, outcome.err
    found = (site / "out" / "detections.json").read_bytes()
    assert found == (trained / "detections.json").read_bytes()


def changed(trained: Path, folder: Path, **metadata: Any) -> Path:
    """Write a copy of a run's weights with other metadata."""
    state, own = read_safetensors(trained / "model.safetensors")
    path = folder / "changed.safetensors"
    write_safetensors(path, state, {**own, **metadata})
    return path


def with_key(trained: Path, section: str, key: str, value: Any) -> dict[str, str]:
    """Return the metadata of a run whose config has another value."""
    config = json.loads(read_safetensors(trained / "model.safetensors")[1]["config"])
    config[section][key] = value
    return {"config": json.dumps(config)}


def refused(call: Call, *runs: Path) -> str:
    """Return the line with which the command refuses some runs."""
    outcome = call(eval_tool, *runs, "--output", "out", *DEVICE)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    return outcome.err


def test_other_classes_are_refused_by_name(site: Path, trained: Path, call: Call) -> None:
    other = changed(trained, site, class_names=json.dumps(["cow", "bee"]))
    line = refused(call, trained, other)
    assert f"{other}: expected the classes of {trained} (cow, ant), got cow, bee; class 1" in line


def test_another_padding_is_refused(site: Path, trained: Path, call: Call) -> None:
    other = changed(trained, site, **with_key(trained, "data", "size_divisor", 64))
    line = refused(call, trained, other)
    assert f"{other}: expected data.size_divisor=32 as in {trained}, got 64" in line


def test_another_task_is_refused(site: Path, trained: Path, call: Call) -> None:
    """A classifier or localizer among detectors, either way round, and detectors of two tasks."""
    config = classification.tiny_config(classification.write_folder(site / "classes"))
    classifier = site / "classifier.safetensors"
    task = ClassificationTask.for_training(config)
    write_safetensors(classifier, task.model.state_dict(), task.metadata())
    localizing: Any = build_task(tiny_config(write_tiny_imagenet(site / "places")))
    localizer = site / "localizer.safetensors"
    write_safetensors(localizer, localizing.model.state_dict(), localizing.metadata())
    assert f"{classifier}: " in refused(call, trained, classifier)
    assert f"{trained}/model.safetensors: " in refused(call, classifier, trained)
    assert f"{localizer}: " in refused(call, trained, localizer)
    assert f"expected one localizer, got 2: {trained}" in refused(call, localizer, trained)
    masks = {"task": "segmentation"}
    config_text = json.loads(read_safetensors(trained / "model.safetensors")[1]["config"])
    other = changed(trained, site, **masks, config=json.dumps({**config_text, **masks}))
    assert f"{other}: " in refused(call, trained, other)


def test_a_run_that_is_not_there_is_named(site: Path, trained: Path, call: Call) -> None:
    assert "absent" in refused(call, trained, site / "absent")
    shutil.copytree(trained, site / "damaged")
    (site / "damaged" / "model.safetensors").write_bytes(b"nothing")
    assert "damaged" in refused(call, trained, site / "damaged")
