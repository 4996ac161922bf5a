"""The GPU check's stages run on a CPU in a dry run, so that no rename breaks them unseen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.lab.gpu_check.__main__ import STAGES

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stage_runs_on_a_cpu(
    stage: str, data_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    more = {}
    if stage == "cifar":
        more = {"CIFAR_ROOT": str(request.getfixturevalue("cifar_root")), "CIFAR_STEPS": "8"}
    environment = {
        **os.environ,
        **more,
        "DRY": "1",
        "OUT": str(tmp_path / "out"),
        "SCRATCH": str(tmp_path / "scratch"),
        "GPU_CHECK_DATA": str(data_dir),
        "LIMIT": "300",
    }
    command = [sys.executable, "-m", "tools.lab.gpu_check", stage]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stage in results["seconds"]
    flat = json.dumps(results)
    assert "FAILED" not in flat, flat
    assert '"code": "2"' not in flat, (tmp_path / "out" / "trainings.log").read_text()
