"""Detect objects in images: predict.py RUN_OR_CHECKPOINT IMAGE_OR_FOLDER ... [key=value ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detection.commands.predict import main
from engine.cli import run_command

if __name__ == "__main__":
    run_command(main)
