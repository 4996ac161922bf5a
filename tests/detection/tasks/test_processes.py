"""N processes do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.detection.tasks.tiny import NECKS, tiny_config

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    tiny_config(folder)
    return folder


def run(processes: int, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes)]
    command += [str(REPOSITORY / "tests/detection/tasks/processes.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(root: Path, tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.pt"
        run(processes, "gradients", str(root), str(output))
        found.append(torch.load(output, weights_only=True))
    assert set(found[0]) == set(NECKS)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def evaluate(root: Path, output: Path, *, processes: int, batch_size: int) -> dict[str, Any]:
    run(processes, "evaluate", str(root), str(output), str(batch_size))
    metrics: dict[str, Any] = json.loads(output.read_text())
    return metrics


@pytest.fixture(scope="module")
def of_one_process(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Metrics with batches of two."""
    return evaluate(root, tmp_path_factory.mktemp("one") / "1.json", processes=1, batch_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_evaluation_is_the_same_for_any_number_of_processes(
    root: Path, tmp_path: Path, of_one_process: dict[str, Any], processes: int
) -> None:
    found = evaluate(root, tmp_path / "metrics.json", processes=processes, batch_size=2)
    assert found == of_one_process
    assert found["num_images"] == 7
    assert found["num_detections"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 5])
def test_evaluation_is_the_same_for_any_batch_size(
    root: Path, tmp_path: Path, of_one_process: dict[str, Any], batch_size: int
) -> None:
    found = evaluate(root, tmp_path / "metrics.json", processes=1, batch_size=batch_size)
    assert found == pytest.approx(of_one_process, abs=1e-4, nan_ok=True)
