"""Write a trained model to a file that runs on its own: export.py RUN_OR_CHECKPOINT ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detection.commands.export import main
from engine.cli import run_command

if __name__ == "__main__":
    run_command(main)
