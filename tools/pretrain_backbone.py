"""Train a classifier: pretrain_backbone.py [CONFIG] [key=value ...] [--output DIR] [--resume].

Its run folder also holds `backbone.safetensors`, a file for a detector's `model.backbone.weights`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detection.commands.pretrain import main
from engine.cli import run_command

if __name__ == "__main__":
    run_command(main)
