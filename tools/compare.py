"""Compare runs in a table: compare.py RUN RUN ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detection.commands.compare import main
from engine.cli import run_command

if __name__ == "__main__":
    run_command(main)
