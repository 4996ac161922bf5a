"""Restarted jobs resume from their last checkpoint."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from detection.commands import pretrain
from detection.commands import train as train_det
from engine.checkpoint import load_checkpoint, read_safetensors
from tests.backbones.classification.tiny import write_folder
from tests.cli.conftest import Call, Outcome
from tests.cli.test_pretrain import CONFIG as CLASSIFIER


def start(call: Call, *arguments: str) -> Outcome:
    return call(train_det, "tiny.yaml", "--output", "run", "--device", "cpu", *arguments)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        pytest.param(["--auto-resume"], None, id="flag", marks=pytest.mark.slow),
        pytest.param([], "TORCHELASTIC_RESTART_COUNT", id="torchrun"),
        pytest.param([], "SLURM_RESTART_COUNT", id="slurm", marks=pytest.mark.slow),
    ],
)
def test_a_restarted_job_is_resumed(
    site: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variable: str | None,
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    arguments = [*arguments, "loop.max_steps=3", "loop.batch_size=1"]
    last = site / "data" / f"{np.random.default_rng((0, 0)).permutation(3)[-1]}.jpg"
    image = last.read_bytes()
    last.write_text("no image")
    stopped = start(call, *arguments)
    assert stopped.code == 2
    last.write_bytes(image)
    done = start(call, *arguments)
    assert done.code == 0, done.err
    assert "resumed at step 2" in done.out
    assert sorted(path.name for path in site.iterdir() if path.is_dir()) == ["data", "run"]
    again = start(call, *arguments)
    assert again.code == 0
    assert "already finished at step 3" in again.out


@pytest.mark.slow
def test_without_auto_resume_a_new_run_starts(site: Path, call: Call) -> None:
    for _ in range(2):
        done = start(call)
        assert done.code == 0, done.err
        assert "resumed" not in done.out
    assert (site / "run.1" / "model.safetensors").exists()


@pytest.mark.extended
def test_a_run_with_another_config_is_not_resumed(site: Path, call: Call) -> None:
    assert start(call).code == 0
    refused = start(call, "optim.lr=0.5", "--auto-resume")
    assert refused.code == 2
    assert "holds a run of another config (optim.lr: 0.001 -> 0.5)" in refused.err


@pytest.mark.extended
def test_a_finished_run_says_how_to_continue_and_gives_its_weights_to_a_new_one(
    site: Path, trained: Path, call: Call
) -> None:
    shutil.copytree(trained, site / "run")
    finished = call(train_det, "--output", "run", "--resume", "--device", "cpu")
    assert finished.code == 0
    assert "finished at step 2; to train further: --resume loop.max_steps=N" in finished.out
    idle = call(train_det, "--output", "run", "--resume", "optim.lr=0.1", "--device", "cpu")
    assert idle.code == 2
    assert "run: finished at step 2, where optim.lr no longer matters; to train" in idle.err
    new = call(
        *(train_det, "tiny.yaml", "--output", "new", "--device", "cpu", "optim.lr=1e-9"),
        "model.weights=run/model.safetensors",
    )
    assert new.code == 0, new.err
    assert "step 1/2" in new.out
    before, after = (
        read_safetensors(site / f"{name}/model.safetensors") for name in ("run", "new")
    )
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-6)


@pytest.mark.extended
def test_a_finished_classifier_is_continued(site: Path, call: Call) -> None:
    write_folder(site / "classes")
    (site / "tiny_class.yaml").write_text(CLASSIFIER)
    device = ("--device", "cpu")
    assert call(pretrain, "tiny_class.yaml", "--output", "run", *device).code == 0
    longer = call(pretrain, "--output", "run", "--resume", "loop.max_steps=4", *device)
    assert longer.code == 0, longer.err
    assert "resumed at step 2" in longer.out
    whole = call(pretrain, "tiny_class.yaml", "--output", "whole", "loop.max_steps=4", *device)
    assert whole.code == 0, whole.err
    ends = [
        load_checkpoint(site / run / "checkpoints/step_00000004.pt") for run in ("run", "whole")
    ]
    torch.testing.assert_close(ends[0]["model"], ends[1]["model"], rtol=0, atol=0)
    start = ("model.backbone.weights=run/model.safetensors", "--output", "new", *device)
    new = call(pretrain, "tiny_class.yaml", *start)
    assert new.code == 0, new.err


@pytest.mark.extended
def test_the_last_lines_name_the_weights_and_the_next_command(site: Path, call: Call) -> None:
    lines = start(call).out.splitlines()
    assert lines[-3].startswith("2 steps, 0:00:")
    assert "best " in lines[-3]
    assert lines[-2] == "run/model.safetensors: weights of step 2 (the last)"
    assert lines[-1] == "next: python tools/predict.py run IMAGE ..."
