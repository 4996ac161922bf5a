"""Train a detector or localizer: train_det.py [CONFIG] [key=value ...] [--output DIR] [...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import parse_training, run_command

DEMO = Path(__file__).resolve().parent.parent / "configs" / "detection" / "demo.yaml"


def main() -> None:
    """Parse, load the config, train."""
    words = parse_training("Train a detector or localizer; many GPUs: torchrun.", default=DEMO)

    from detection.schemas import SCHEMAS
    from engine.config import load_config

    config = load_config(words.config, words.overrides, schemas=SCHEMAS)

    from backbones.curves import write_curves
    from detection.tasks import build_task
    from engine.trainer import fit

    task = build_task(config)
    fit(task, config, output=words.output, replace=True, resume=words.resume, device=words.device)
    if words.is_main:
        write_curves(words.output)


if __name__ == "__main__":
    run_command(main)
