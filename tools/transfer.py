"""Compare a backbone with random weights: transfer.py BACKBONE [key=value ...] [--output DIR].

Runs four short trainings with the backbone and four from random weights, and writes one table and
one image. Repeating the command resumes an interrupted training and skips finished ones.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command
from tools.lab.transfer.command import main

if __name__ == "__main__":
    run_command(main)
