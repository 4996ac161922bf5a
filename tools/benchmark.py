"""Measure speed and memory against other libraries: benchmark.py NAME ... [--model M]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command
from tools.lab.benchmarks.command import main

if __name__ == "__main__":
    run_command(main)
