"""Command `train`: train a detector or localizer.

Usage: resdet train [CONFIG] [key=value ...] [--output DIR] [--resume] (tools/train_det.py)
"""

from detection.commands.config_files import CONFIGS, TRAIN_FOLDERS, find_config
from engine.cli import command_line, parse_training

DEMO = CONFIGS / "detection" / "demo.yaml"


def main() -> None:
    """Parse the command line, load the config, train."""
    arguments = parse_training(
        "Train a detector or localizer; use torchrun for several GPUs.", default=DEMO
    )

    from detection.commands.schemas import SCHEMAS
    from detection.config import DetectionConfig
    from engine.config import describe_config, load_config
    from engine.log import make_console

    path = find_config(arguments.config, TRAIN_FOLDERS)
    config = load_config(path, arguments.overrides, schemas=SCHEMAS)
    if arguments.is_main:
        make_console().print(describe_config(path, arguments.overrides))

    from backbones.training import train
    from detection.commands.tasks import build_task, check_weights

    check_weights(config)
    task = build_task(config)
    train(task, config, arguments)
    # the command to try next: predict.py needs a detector
    if arguments.is_main:
        if isinstance(config, DetectionConfig):
            following = f"{command_line('predict', 'predict')} {arguments.output} IMAGE ..."
        else:
            following = f"{command_line('eval', 'eval')} {arguments.output}"
        make_console().print(f"next: {following}", highlight=False)
