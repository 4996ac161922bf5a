"""Commands limit how long idle OpenMP threads spin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import SPIN_COUNT

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
from engine.cli import run_command

def main():
    assert "torch" not in sys.modules  # OpenMP reads the count when torch is loaded
    print(os.environ.get("GOMP_SPINCOUNT"))

run_command(main)
"""


@pytest.mark.parametrize(
    ("user_settings", "expected"),
    [
        ({}, str(SPIN_COUNT)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, "None"),
    ],
    ids=["default", "user's count", "user's policy"],
)
def test_spin_count_is_set_unless_the_user_sets_it(
    user_settings: dict[str, str], expected: str
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = kept | {"PYTHONPATH": str(REPOSITORY)} | user_settings
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
