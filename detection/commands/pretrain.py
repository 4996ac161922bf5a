"""Train a classifier: pretrain_backbone.py [CONFIG] [key=value ...] [--output DIR] [--resume].

Its run folder also holds `backbone.safetensors`, for a detector's `model.backbone.weights`.
"""

from detection.commands.config_files import CONFIGS, find_config
from engine.cli import command_line, parse_training

DEMO = CONFIGS / "backbones" / "demo_objects.yaml"


def main() -> None:
    """Parse, load the config, train, export."""
    words = parse_training("Train a classifier; on many GPUs with torchrun.", default=DEMO)

    from backbones.classification.config import SCHEMAS, ClassificationConfig
    from engine.config import describe_config, load_config
    from engine.log import make_console

    config = load_config(find_config(words.config), words.overrides, schemas=SCHEMAS)
    if words.is_main:
        make_console().print(describe_config(words.config, words.overrides))
    assert isinstance(config, ClassificationConfig)

    from backbones.classification.load_and_export import export_backbone
    from backbones.training import train
    from detection.commands.tasks import build_task, check_weights

    check_weights(config)
    task = build_task(config)
    metrics = train(task, config, words)
    if words.is_main:
        export_backbone(words.output, metrics=metrics, device=words.device)
        following = f"{command_line('eval', 'eval')} {words.output}"
        make_console().print(f"next: {following}", highlight=False)
