"""`fit` with two processes leaves the weights of `fit` with one and the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.checkpoint import read_safetensors
from engine.trainer import fit
from tests.engine.fit_process import run_config
from tests.engine.toy import ToyTask

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.extended
def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tests/engine/fit_process.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    start = {name: value.detach() for name, value in ToyTask().model.named_parameters()}
    fit(ToyTask(), run_config(), output=tmp_path / "alone", device="cpu")
    both, alone = (
        read_safetensors(tmp_path / name / "model.safetensors")[0] for name in ("run", "alone")
    )
    assert all((alone[name] - start[name]).abs().max() > 1e-3 for name in start)
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-6)
    mine, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(other, mine, rtol=0, atol=0)
