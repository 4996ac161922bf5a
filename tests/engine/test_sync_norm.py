"""Synchronised batch norm over processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.extended
def test_two_processes_give_the_gradients_and_statistics_of_one(tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
        command += [str(REPOSITORY / "tests/engine/norm_process.py"), str(output)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(output, weights_only=True))
    assert set(found[0]) >= {"0.weight", "1.running_mean", "4.running_var", "evaluated"}
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
