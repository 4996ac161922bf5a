"""Train a detector or localizer: train_det.py [CONFIG] [key=value ...] [--output DIR] [...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import parse_training, run_command

DEMO = Path(__file__).resolve().parent.parent / "configs" / "detection" / "demo.yaml"


def main() -> None:
    """Parse, load the config, train."""
    words = parse_training("Train a detector or localizer; many GPUs: torchrun.", default=DEMO)

    from detection.config import DetectionConfig
    from detection.schemas import SCHEMAS
    from engine.config import describe_config, load_config
    from engine.log import make_console

    config = load_config(words.config, words.overrides, schemas=SCHEMAS)
    if words.is_main:
        make_console().print(describe_config(words.config, words.overrides))

    from backbones.training import train
    from detection.tasks import build_task
    from detection.tasks.start_checks import check_weights

    check_weights(config)
    task = build_task(config)
    train(task, config, words)
    if words.is_main:
        predicts = isinstance(config, DetectionConfig)
        following = (
            f"predict.py {words.output} IMAGE ..." if predicts else f"eval.py {words.output}"
        )
        make_console().print(f"next: python tools/{following}", highlight=False)


if __name__ == "__main__":
    run_command(main)
