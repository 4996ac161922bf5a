"""Train a detector or localizer: train_det.py [CONFIG] [key=value ...] [--output DIR] [...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detection.commands.train import main
from engine.cli import run_command

if __name__ == "__main__":
    run_command(main)
