"""The commands train, eval and compare on a localizer; mistakes are one-line errors."""

import json
from pathlib import Path

import pytest

from detection.commands import compare
from detection.commands import evaluate as eval_tool
from detection.commands import train as train_det
from engine.config import dump_config
from tests.cli.conftest import Call
from tests.detection.localization.tiny_localizer import tiny_config, write_tiny_imagenet


@pytest.fixture
def patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny data set and patches.yaml; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    write_tiny_imagenet(tmp_path / "data")
    (tmp_path / "patches.yaml").write_text(dump_config(tiny_config(Path("data"))))
    return tmp_path


@pytest.mark.extended
def test_train_and_evaluate(patches: Path, call: Call) -> None:
    (patches / "data/train/red/red_boxes.txt").write_text(
        "red_0.png\t1\t1\t20\t20\nred_1.png\t3\t4\t3\t9\n"
    )
    done = call(train_det, "patches.yaml", "--output", "run", "--device", "cpu")
    assert done.code == 0, done.err
    assert "1 boxes dropped (no width or height): red_1.png (3, 4, 3, 9)" in done.out
    assert "error of the mean box" in done.out
    written = {path.name for path in (patches / "run").iterdir()}
    assert written >= {"metrics.json", "localizations.json", "model.safetensors", "pictures"}

    for arguments in (
        [],
        ["evaluation.view=dense", "evaluation.merge=vote", "evaluation.mirror=true"],
    ):
        done = call(eval_tool, "run", *arguments, "--device", "cpu")
        assert done.code == 0, done.err
        metrics = json.loads((patches / "run/eval/metrics.json").read_text())
        assert metrics["num_images"] == 4
        assert metrics["baseline_localization_error"] <= 1
    done = call(eval_tool, "run/checkpoints/step_00000002.pt", "--device", "cpu")
    assert done.code == 0, done.err


@pytest.mark.extended
def test_a_resumed_run_reports_changed_boxes(patches: Path, call: Call) -> None:
    arguments = ["--output", "run", "--device", "cpu"]
    assert call(train_det, "patches.yaml", "loop.max_steps=1", *arguments).code == 0
    (patches / "data/train/red/red_boxes.txt").write_text("red_0.png\t1\t1\t20\t20\n")
    done = call(train_det, "--resume", "loop.max_steps=2", *arguments)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("resumed with changed data: training data") == 1
    assert "validation data differ from" not in done.out


MISTAKES = {
    "no data": (["data.root=absent"], "data.root absent: expected the folder of the data set"),
    "typo": (["model.per_clas=true"], "model.per_clas: unknown key; nearest: model.per_class"),
    "classifier": (["evaluation.classifier=absent"], "absent: no such run folder or file"),
    "weights": (["model.backbone.weights=none.pth"], "none.pth"),
    "bad box": (["data.on_bad_box=error"], "blue_0.png: expected a box with x1 < x2 and y1 < y2"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(
    patches: Path, call: Call, arguments: list[str], message: str
) -> None:
    (patches / "data/train/blue/blue_boxes.txt").write_text("blue_0.png\t9\t9\t9\t9\n")
    done = call(train_det, "patches.yaml", *arguments, "--output", "run", "--device", "cpu")
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


NO_FIRST_STAGE = {
    "none": ([], "regions.yaml: model.localizer: expected a run of task localization, got nothing"),
    "missing": (["model.localizer=absent"], "absent: no such run folder or file"),
}


@pytest.mark.parametrize(("arguments", "message"), NO_FIRST_STAGE.values(), ids=NO_FIRST_STAGE)
def test_a_missing_first_stage_is_reported_before_data_is_read(
    patches: Path, call: Call, arguments: list[str], message: str
) -> None:
    backbone = "model: {backbone: {norm: batch, frozen_stages: 0}}\n"
    text = f"task: localization_regions\ndata: {{root: no_data}}\n{backbone}"
    (patches / "regions.yaml").write_text(text)
    done = call(train_det, "regions.yaml", *arguments)
    assert (done.code, done.err) == (2, f"error: {message}\n")


@pytest.mark.extended
def test_two_localizers_are_refused(patches: Path, call: Call) -> None:
    assert call(train_det, "patches.yaml", "--output", "run", "--device", "cpu").code == 0
    done = call(eval_tool, "run", "run", "--device", "cpu")
    assert done.code == 2
    assert "expected one localizer, got 2" in done.err


@pytest.mark.extended
def test_localization_error_is_compared(patches: Path, call: Call) -> None:
    assert call(train_det, "patches.yaml", "--output", "run", "--device", "cpu").code == 0
    error = json.loads((patches / "run/metrics.json").read_text())["localization_error"]
    done = call(compare, "run")
    assert done.code == 0, done.err
    assert "localization" in done.out
    assert f"{100 * error:.1f}" in done.out
