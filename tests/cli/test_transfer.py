"""tools/transfer.py: planned runs, output files, error messages."""

import math
from pathlib import Path

import pytest
import torch

from backbones import resnet18
from backbones.images import read_image
from detection.config import DetectionConfig
from engine.checkpoint import write_safetensors
from engine.errors import UserError
from tests.cli.conftest import Call
from tools.lab.transfer import command as transfer
from tools.lab.transfer.trials import plan_trials

CLASSIFIER = """
task: classification
data: {root: objects, demo: {root: objects, num_train: 24, num_val: 12}}
augment: {crop: 32}
model: {backbone: {kind: resnet18}}
evaluation: {resize: 32, crop: 32}
loader: {workers: 0}
loop: {max_steps: 2, batch_size: 8}
"""
DETECTOR = """
data:
  train: {images: demo/train, annotations: demo/annotations/train.json}
  val: {images: demo/val, annotations: demo/annotations/val.json}
  demo: {root: demo, num_train: 8, num_val: 4}
  augment: {short_sides: [64], max_side: 96}
  eval_short_side: 64
  eval_max_side: 96
model:
  backbone: {kind: resnet18, norm: batch, frozen_stages: 0}
  neck: {kind: fpn, channels: 16}
  rpn: {anchor_sizes: [8, 16, 32, 64, 96], post_nms_topk_train: 30, post_nms_topk_test: 20}
  roi: {hidden_dim: 16, num_samples: 16}
loader: {workers: 0}
loop: {max_steps: 2, batch_size: 4}
"""
TRIALS = """
trials:
  classification: {config: classifier.yaml, score: top1}
  detection: {config: detector.yaml, score: ap, overrides: [optim.lr=0.001]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configs and a backbone; the working directory of the test."""
    for name, text in (
        ("classifier.yaml", CLASSIFIER),
        ("detector.yaml", DETECTOR),
        ("trials.yaml", TRIALS),
    ):
        (tmp_path / name).write_text(text)
    torch.manual_seed(0)
    network = resnet18(num_classes=None)
    write_safetensors(tmp_path / "backbone.safetensors", network.state_dict(), {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_overrides_apply_to_one_task_or_to_all(folder: Path) -> None:
    arguments = ["seed=5", "detection.loop.max_steps=1", "classification.optim.lr=0.5"]
    classification, detection = plan_trials(
        folder / "trials.yaml",
        folder / "backbone.safetensors",
        output=folder / "out",
        overrides=arguments,
    )
    for run in (detection.pretrained, detection.random):
        assert (run.config.seed, run.config.loop.max_steps, run.config.optim.lr) == (5, 1, 0.001)
    assert classification.random.config.optim.lr == 0.5
    assert classification.random.config.loop.max_steps == 2
    config = detection.pretrained.config
    assert isinstance(config, DetectionConfig)
    assert config.model.backbone.weights == str(folder / "backbone.safetensors")
    assert detection.random.folder == folder / "out" / "detection_random"


def test_repository_config_has_four_trials(folder: Path) -> None:
    trials = plan_trials(transfer.TRANSFER, folder / "backbone.safetensors", output=folder)
    assert [t.name for t in trials] == [
        "classification",
        "localization",
        "detection",
        "segmentation",
    ]


@pytest.mark.slow
def test_report_is_written_and_finished_runs_are_skipped(folder: Path, call: Call) -> None:
    arguments = [
        "backbone.safetensors",
        "--config",
        "trials.yaml",
        "--output",
        "out",
        "--device",
        "cpu",
    ]
    outcome = call(transfer, *arguments)
    assert outcome.code == 0, outcome.err
    report = (folder / "out" / "report.md").read_text()
    assert [line.split("|")[1].strip() for line in report.splitlines()[2:]] == [
        "task",
        "---",
        "classification",
        "detection",
    ]
    assert min(read_image(folder / "out" / "transfer.png").shape[:2]) > 100
    again = call(transfer, *arguments)
    assert again.code == 0
    assert again.out.count("is done") == 4
    assert (folder / "out" / "report.md").read_text() == report
    changed = call(transfer, *arguments, "seed=3")
    assert changed.code == 2
    assert "holds a run of another config (seed: 0 -> 3)" in changed.err


def test_missing_backbone(folder: Path, call: Call) -> None:
    outcome = call(transfer, "nowhere.safetensors", "--config", "trials.yaml")
    assert outcome.code == 2
    assert "nowhere.safetensors: expected a weights file, got none" in outcome.err
    assert call(transfer, "seed=1").code == 2


def test_unknown_key_of_the_config_is_named(folder: Path) -> None:
    (folder / "trials.yaml").write_text(TRIALS.replace("score: ap", "scores: ap"))
    with pytest.raises(UserError, match=r"trials\.yaml: .*unknown key"):
        plan_trials(folder / "trials.yaml", folder / "backbone.safetensors", output=folder)


def test_a_run_without_drawings_is_refused_at_the_start(folder: Path, call: Call) -> None:
    arguments = ["backbone.safetensors", "--config", "trials.yaml", "detection.loop.drawn_images=0"]
    outcome = call(transfer, *arguments)
    assert outcome.code == 2
    assert outcome.err == "error: detection: loop.drawn_images: expected at least 1, got 0\n"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"top1": 0.5}', 0.5),
        ('{"top1": null}', math.nan),
        ("{}", None),
        ("[1]", None),
        ('{"top1": "x"}', None),
        ('{"top1": [1]}', None),
        ("{", None),
        ("\x00", None),
    ],
)
def test_scores_are_read_or_refused(folder: Path, text: str, score: float | None) -> None:
    trial, _ = plan_trials(
        folder / "trials.yaml", folder / "backbone.safetensors", output=folder / "out"
    )
    for run in (trial.pretrained, trial.random):
        run.folder.mkdir(parents=True)
        (run.folder / "metrics.json").write_text(text)
    if score is None:
        with pytest.raises(UserError, match=r"metrics.json: expected the score top1"):
            trial.scores()
    else:
        assert trial.scores() == pytest.approx((score, score), nan_ok=True)
