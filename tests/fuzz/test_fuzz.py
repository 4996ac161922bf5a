"""Fuzzing: hostile files are read or refused in one line, without a traceback, hang or crash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.run_one import KINDS

REPOSITORY = Path(__file__).resolve().parents[2]


def check(name: str, count: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run_one", name, count, str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stdout.write(done.stdout)  # shown by pytest -s
    assert done.returncode == 0, done.stderr


@pytest.mark.extended
@pytest.mark.parametrize("name", KINDS)
def test_some_hostile_files(name: str, tmp_path: Path) -> None:
    check(name, "quick", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_all_hostile_files(name: str, tmp_path: Path) -> None:
    check(name, "full", tmp_path)
