"""The pretrain command, and the commands eval, train and compare on its run."""

import json
from pathlib import Path

import pytest

from detection.commands import compare
from detection.commands import evaluate as eval_tool
from detection.commands import pretrain as pretrain_backbone
from detection.commands import train as train_det
from tests.backbones.classification.tiny import write_folder
from tests.cli.conftest import Call

CONFIG = """\
data: {root: classes}
augment: {crop: 32, area: [0.5, 1.0]}
model: {backbone: {kind: resnet18}}
evaluation: {resize: 36, crop: 32}
loader: {workers: 0}
loop: {max_steps: 2, batch_size: 4, log_every: 1}
"""


@pytest.fixture
def classes(site: Path) -> Path:
    """The tiny detection data set, with a folder of images of two classes and tiny_class.yaml."""
    write_folder(site / "classes")
    (site / "tiny_class.yaml").write_text(CONFIG)
    return site


@pytest.mark.extended
def test_pretrain_evaluate_and_train_a_detector_on_it(classes: Path, call: Call) -> None:
    done = call(pretrain_backbone, "tiny_class.yaml", "--output", "run", "--device", "cpu")
    assert done.code == 0, done.err
    assert "batch-norm statistics recomputed over 16 training images" in done.out
    names = {path.name for path in (classes / "run").iterdir()}
    assert names >= {"model.safetensors", "backbone.safetensors", "metrics.json", "curves.png"}
    center = json.loads((classes / "run" / "metrics.json").read_text())

    arguments = ["tiny_class.yaml", "--output", "run", "--device", "cpu", "--resume"]
    done = call(pretrain_backbone, *arguments)
    assert (done.code, done.err) == (0, "")
    assert "already finished at step 2" in done.out
    assert "run/backbone.safetensors: already made from these weights" in done.out
    (classes / "run" / "model.safetensors").touch()  # as if a longer run had written it
    assert "statistics recomputed" in call(pretrain_backbone, *arguments).out

    again = call(eval_tool, "run", "--device", "cpu")
    assert again.code == 0, again.err
    scored = json.loads((classes / "run" / "eval" / "metrics.json").read_text())
    assert scored["top1"] == center["top1"]
    for arguments in (["run", "evaluation.view=ten_crop"], ["run", "run/checkpoints/best.pt"]):
        done = call(eval_tool, *arguments, "--output", "more", "--device", "cpu")
        assert done.code == 0, done.err
        assert json.loads((classes / "more" / "metrics.json").read_text())["num_images"] == 8

    weights = "model.backbone.weights=run/backbone.safetensors"
    arguments = ["tiny.yaml", weights, "model.backbone.norm=batch", "--output", "detector"]
    done = call(train_det, *arguments, "--device", "cpu")
    assert done.code == 0, done.err
    assert "weights from run/backbone.safetensors (resdet, sha256" in done.out

    done = call(compare, "run", "detector")
    assert done.code == 0, done.err
    assert "detector" in done.out
    assert f"{100 * center['top1']:.1f}" in done.out


@pytest.mark.slow
def test_a_resumed_run_reports_changed_images(classes: Path, call: Call) -> None:
    arguments = ["--output", "run", "--device", "cpu"]
    assert call(pretrain_backbone, "tiny_class.yaml", "loop.max_steps=1", *arguments).code == 0
    image = min((classes / "classes" / "val").rglob("*.*"))
    image.rename(image.with_stem("another"))
    done = call(pretrain_backbone, "--resume", "loop.max_steps=2", *arguments)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("resumed with changed data: validation data") == 1
    assert "training data differ from" not in done.out


@pytest.mark.extended
def test_pixel_mean_of_the_detector_must_equal_the_backbone_s(classes: Path, call: Call) -> None:
    arguments = ["tiny_class.yaml", "model.backbone.pixel_mean=[128, 128, 128]", "--output", "run"]
    assert call(pretrain_backbone, *arguments, "--device", "cpu").code == 0
    weights = "model.backbone.weights=run/backbone.safetensors"
    done = call(train_det, "tiny.yaml", weights, "model.backbone.norm=batch", "--device", "cpu")
    assert done.code == 2
    assert "expected model.backbone.pixel_mean=[128.0, 128.0, 128.0] (the file's)" in done.err


MISTAKES = {
    "no data": (["data.root=nowhere"], "data.root nowhere: expected the folder with train/ and"),
    "no root": (["data.root="], "data.root"),
    "typo": (["augment.cropp=3"], "augment.cropp: unknown key"),
    "crop": (["evaluation.crop=64"], "resize: expected at least crop (64), got 36"),
    "cifar": (["data.kind=cifar10"], "expected cifar-10-batches-py/"),
    "cifar crop": (
        ["data.kind=cifar10", "augment.crop=48"],
        "augment.crop: expected at most 32 (32 plus the padding), got 48",
    ),
    "weights": (["model.backbone.weights=none.pth"], "none.pth"),
    "two configs": (["other.yaml"], "expected one config"),
    "resume": (["--resume"], "--resume: expected checkpoints in"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(
    classes: Path, call: Call, arguments: list[str], message: str
) -> None:
    done = call(pretrain_backbone, "tiny_class.yaml", *arguments, "--output", "run")
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err


def test_a_folder_without_a_run_cannot_be_compared(site: Path, call: Call) -> None:
    done = call(compare, "data")
    assert done.code == 2
    assert "metrics.json: expected the file of an evaluated run, got none" in done.err


@pytest.mark.parametrize(
    ("lines", "code", "part"),
    [
        ('{"kind": "eval", "step": 7}\n', 0, "7"),
        ("", 0, "run"),
        ('{"kind": "ev', 0, "run: damaged lines of metrics.jsonl, skipped: 1"),
    ],
    ids=["complete", "empty", "truncated"],
)
def test_incomplete_runs_are_compared(
    site: Path, call: Call, lines: str, code: int, part: str
) -> None:
    (site / "run").mkdir()
    (site / "run" / "metrics.json").write_text('{"ap": null, "mask_ap": 0.25}')
    (site / "run" / "metrics.jsonl").write_text(lines)
    done = call(compare, "run")
    assert done.code == code
    assert part in done.out + done.err
    assert "Traceback" not in done.err
    assert ("25.0" in done.out) == (code == 0)
