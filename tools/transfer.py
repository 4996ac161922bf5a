"""What a backbone is worth for each task: transfer.py BACKBONE [key=value ...] [--output DIR].

Four short trainings on it and four from random weights, one table and one image. The same command
goes on where it was interrupted.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command
from tools.lab.transfer.command import main

if __name__ == "__main__":
    run_command(main)
