"""The study of backbones: planning, report and verdicts from files, and a tiny complete study."""

from pathlib import Path
from typing import Any

import pytest

from detection.config import DetectionConfig
from engine.errors import UserError
from tests.lab.study.finished import finish_run, finish_scoring, write_annotations
from tests.lab.study.tiny_configs import DATA, write_configs
from tools.lab.study.config import BackboneStudyConfig
from tools.lab.study.residual_backbone import (
    BackboneRuns,
    plan_runs,
    run_study,
    trainings_of,
    write_report,
)

VALUES: dict[str, Any] = {
    "pretraining": {
        "config": "classifier.yaml",
        "data": {"data.root": "objects", "data.demo.root": "objects"},
    },
    "detection": {"config": "detector.yaml", "data": DATA, "overrides": ["optim.lr=0.001"]},
    "backbones": {"resnet18": {}, "resnet34": {"detection": ["optim.lr=0.002"]}},
    "reference": "resnet34",
    "expectations": [
        {"backbone": "resnet34", "above": "resnet18", "at_least": 10},
        {"backbone": "resnet34", "score": "top1", "at_least": 90},
    ],
}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """Folder with the configs of both trainings."""
    return write_configs(tmp_path / "configs")


def scale_of(**changes: Any) -> BackboneStudyConfig:
    return BackboneStudyConfig.model_validate({**VALUES, **changes})


def plan(configs: Path, scale: BackboneStudyConfig, **changes: Any) -> list[BackboneRuns]:
    arguments = {"output": configs.parent / "study", "data": str(configs.parent / "data")}
    return plan_runs(scale, configs=configs, **{**arguments, **changes})


def finish(each: BackboneRuns, *, top1: float, found: int) -> None:
    finish_run(each.pretraining, [{"kind": "eval", "step": 2, "top1": top1}], top1=top1)
    finish_run(each.detector, [{"kind": "eval", "step": 2, "ap": 0.5}], ap=0.5)
    finish_scoring(each.scoring, found=found)


def report_of(scale: BackboneStudyConfig, planned: list[BackboneRuns], folder: Path) -> str:
    write_report(scale, planned, output=folder, command="python tools/repro.py run")
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    return (folder / "report.md").read_text()


def test_plan_is_ordered_by_seed_and_the_detector_starts_from_the_backbone(configs: Path) -> None:
    planned = plan(configs, scale_of(), seeds=[3, 1, 3], data="my #1: data")
    assert [run.name for run in trainings_of(planned)][:5] == [
        *("resnet18-pretraining-seed3", "resnet18-detector-seed3"),
        *("resnet34-pretraining-seed3", "resnet34-detector-seed3"),
        "resnet18-pretraining-seed1",
    ]
    last = planned[-1]
    assert (last.backbone, last.seed, len(planned)) == ("resnet34", 1, 4)
    config = last.detector.config
    assert isinstance(config, DetectionConfig)
    assert config.model.backbone.kind == "resnet34"
    assert config.model.backbone.weights == str(last.pretraining.folder / "backbone.safetensors")
    assert config.data.train.images == "my #1: data/demo/train"
    assert [each.detector.config.optim.lr for each in planned] == [0.001, 0.002, 0.001, 0.002]
    assert last.pretraining.config.seed == config.seed == 1


def test_detectors_are_scored_on_the_test_data(configs: Path) -> None:
    scale = scale_of(test={"data.val.annotations": "bccd/test.json"})
    scoring = plan(configs, scale, data="somewhere")[0].scoring
    assert scoring.overrides == ('data.val.annotations="somewhere/bccd/test.json"',)
    assert scoring.annotations == Path("somewhere/bccd/test.json")


def test_config_of_another_task_is_an_error(configs: Path) -> None:
    scale = scale_of(pretraining={"config": "detector.yaml"})
    with pytest.raises(UserError, match=r"pretraining-seed0: task: expected class.*got detection$"):
        plan(configs, scale)


@pytest.mark.parametrize(
    "changes",
    [
        {"reference": "vgg19"},
        {"expectations": [{"backbone": "resnet34", "above": "vgg19", "at_least": 1}]},
    ],
)
def test_unknown_backbone_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"one of backbones \(resnet18, resnet34\), got vgg19"):
        scale_of(**changes)


def test_report_of_a_finished_study(configs: Path, tmp_path: Path) -> None:
    scale = scale_of(seeds=[0, 1])
    planned = plan(configs, scale)
    write_annotations(planned[0].scoring.annotations)
    for each, top1, found in zip(planned, (0.5, 0.8, 0.6, 0.9), (2, 3, 2, 4), strict=True):
        finish(each, top1=top1, found=found)
    text = report_of(scale, planned, tmp_path / "report")
    # 51 of 101 recalls with both seeds; 76 and 101
    assert " | 55.00 +- 7.07 | 50.50 +- 0.00 | 50.50 +- 0.00 | -37.13 (-37.13 to -37.13) |" in text
    assert " | 85.00 +- 7.07 | 87.62 +- 17.50 | 87.62 +- 17.50 | - |" in text
    difference = "ap with resnet34 minus that with resnet18"
    assert f"- {difference}: wanted at least 10.00, measured 37.13: PASS" in text
    assert "- top1 with resnet34: wanted at least 90.00, measured 85.00: FAIL" in text
    assert "on the test images (6)" in text
    assert "| resnet34 | 1 | 90.00 | 100.00 | 100.00 |" in text
    assert text.count("| a machine, torch 0.0, commit 123 |") == 8
    assert "Command: `python tools/repro.py run`" in text


def test_missing_runs_are_reported_as_not_run(configs: Path, tmp_path: Path) -> None:
    scale = scale_of(seeds=[0, 1])
    planned = plan(configs, scale)
    write_annotations(planned[0].scoring.annotations)
    finish(planned[1], top1=0.8, found=3)
    text = report_of(scale, planned, tmp_path / "report")
    assert " | not run | not run | not run | - |" in text
    assert " | 80.00 (one seed), 1 of 2 runs | 75.25 (one seed), 1 of 2 runs |" in text
    assert "wanted at least 10.00: not run" in text
    assert "PASS" not in text
    assert text.count("seed1 | not run | - |\n") == 4


def test_weights_that_changed_are_scored_again(configs: Path, tmp_path: Path) -> None:
    scale = scale_of(seeds=[0])
    planned = plan(configs, scale)
    write_annotations(planned[0].scoring.annotations)
    for each in planned:
        finish(each, top1=0.5, found=4)
    (planned[0].detector.folder / "model.safetensors").write_bytes(b"other weights")
    text = report_of(scale, planned, tmp_path / "report")
    assert "| resnet18 | 0 | 50.00 | - | - |" in text


def test_damaged_file_is_named(configs: Path, tmp_path: Path) -> None:
    scale = scale_of(seeds=[0])
    planned = plan(configs, scale)
    write_annotations(planned[0].scoring.annotations)
    finish(planned[0], top1=0.5, found=4)
    for content, message in (("{", "not valid JSON"), ("[]", "expected an object, got list")):
        (planned[0].scoring.folder / "metrics.json").write_text(content)
        with pytest.raises(UserError, match=rf"test/metrics\.json: {message}"):
            report_of(scale, planned, tmp_path / "report")


@pytest.mark.extended
def test_tiny_study_end_to_end(configs: Path) -> None:
    scale = scale_of(seeds=[0])
    planned = plan(configs, scale)
    output = configs.parent / "study"
    report = run_study(scale, planned, output=output, command="this test", device="cpu")
    assert [len(row.scores[name]) for row in report.rows for name in ("top1", "ap50")] == [1] * 4
    assert report.rows[0].difference is not None
    names = {path.name for path in output.iterdir()}
    runs = trainings_of(planned)
    assert names == {"report.md", "curves.png", *(run.name for run in runs)}

    files = ["model.safetensors", "backbone.safetensors", "test/detections.json"]
    kept = [run.folder / file for run in runs for file in files if (run.folder / file).exists()]
    assert len(kept) == 8
    times = [file.stat().st_mtime_ns for file in kept]
    again = run_study(scale, planned, output=output, command="this test", device="cpu")
    assert [file.stat().st_mtime_ns for file in kept] == times
    assert [row.scores for row in again.rows] == [row.scores for row in report.rows]

    # as if killed between the pretraining and the export, and before the detector's end
    for run, file in ((runs[0], "backbone.safetensors"), (runs[1], "model.safetensors")):
        (run.folder / file).unlink()
    third = run_study(scale, planned, output=output, command="this test", device="cpu")
    assert third.rows[0].scores == report.rows[0].scores
