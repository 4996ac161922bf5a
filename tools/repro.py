"""Reproduce the paper: repro.py list, or repro.py run cifar-degradation --scale quick.

Repeating a `run` command resumes an interrupted training and skips finished ones.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command
from tools.lab.study.command import main

if __name__ == "__main__":
    run_command(main)
