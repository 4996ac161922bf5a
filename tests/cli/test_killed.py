"""A run that is killed and resumed has the same final weights as an uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.checkpoint import read_safetensors
from tests.cli.conftest import write_site

TRAIN = Path(__file__).resolve().parents[2] / "tools" / "train_det.py"
STEPS = 8


def start(folder: Path, output: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(TRAIN), "tiny.yaml", f"loop.max_steps={STEPS}"]
    command += ["loop.checkpoint_every=1", "loop.ema_decay=0.9", "--output", output, *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            return
    pytest.fail(f"the run ended before step {step}: {process.communicate()[1]}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The final weights of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_site(folder)
    finish(start(folder, "run", "loader.workers=0"))
    return read_safetensors(folder / "run" / "model.safetensors")[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_sigkill_at_a_random_step(
    site: Path, uninterrupted: dict[str, Tensor], workers: int
) -> None:
    rng = random.Random(time.time_ns())
    # from step 2: the checkpoint of a step is written after its log line
    step, delay = rng.randrange(2, STEPS - 1), rng.uniform(0, 0.1)
    arguments = [f"loader.workers={workers}"]
    killed = start(site, "killed", *arguments)
    wait_for_step(killed, step)
    time.sleep(delay)  # the kill may come during a step or while a checkpoint is written
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    finish(start(site, "killed", "--resume", *arguments))
    resumed, _ = read_safetensors(site / "killed" / "model.safetensors")
    where = f"killed {delay:.3f} s after step {step}"
    torch.testing.assert_close(
        resumed, uninterrupted, rtol=0, atol=0, msg=lambda text: f"{where}: {text}"
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.slow),
    ],
)
def test_sigint_and_sigterm_write_a_checkpoint(site: Path, number: signal.Signals) -> None:
    process = start(site, "run", "loop.max_steps=10000", "loop.checkpoint_every=10000")
    wait_for_step(process, 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err
    assert "Traceback" not in err
    assert len(list((site / "run" / "checkpoints").glob("step_*.pt"))) == 1
