"""The paper's tables and figures: repro.py list, or repro.py run cifar-degradation --scale quick.

A run that was interrupted goes on by the same command, and one that is done is not trained again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command
from tools.lab.study.command import main

if __name__ == "__main__":
    run_command(main)
