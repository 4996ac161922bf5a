"""Download data sets, and convert others to COCO JSON: prepare_data.py COMMAND --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detection.commands.data import main
from engine.cli import run_command

if __name__ == "__main__":
    run_command(main)
