"""Evaluate a run, or a results file: eval.py RUN_OR_CHECKPOINT | --results FILE.json."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detection.commands.evaluate import main
from engine.cli import run_command

if __name__ == "__main__":
    run_command(main)
