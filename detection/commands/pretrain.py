"""Command `pretrain`: train a classifier, as a pretrained backbone for detectors.

The run folder also holds `backbone.safetensors`, for a detector's `model.backbone.weights`.

Usage: resdet pretrain [CONFIG] [key=value ...] [--output DIR] [--resume]
(tools/pretrain_backbone.py)
"""

from detection.commands.config_files import CONFIGS, PRETRAIN_FOLDERS, find_config
from engine.cli import command_line, parse_training

DEMO = CONFIGS / "backbones" / "demo_objects.yaml"


def main() -> None:
    """Parse the command line, load the config, train, export the backbone."""
    arguments = parse_training("Train a classifier; use torchrun for several GPUs.", default=DEMO)

    from backbones.classification.config import SCHEMAS, ClassificationConfig
    from engine.config import describe_config, load_config
    from engine.log import make_console

    path = find_config(arguments.config, PRETRAIN_FOLDERS)
    config = load_config(path, arguments.overrides, schemas=SCHEMAS)
    if arguments.is_main:
        make_console().print(describe_config(path, arguments.overrides))
    assert isinstance(config, ClassificationConfig)

    from backbones.classification.load_and_export import export_backbone
    from backbones.training import train
    from detection.commands.tasks import build_task, check_weights

    check_weights(config)
    task = build_task(config)
    metrics = train(task, config, arguments)
    # only one process of a distributed training writes the backbone
    if arguments.is_main:
        export_backbone(arguments.output, metrics=metrics, device=arguments.device)
        following = f"{command_line('eval', 'eval')} {arguments.output}"
        make_console().print(f"next: {following}", highlight=False)
