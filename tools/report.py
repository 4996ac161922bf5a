"""Write a report of a run or of a COCO results file: report.py RUN_OR_RESULTS ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detection.commands.report import main
from engine.cli import run_command

if __name__ == "__main__":
    run_command(main)
