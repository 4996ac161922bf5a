"""Train a classifier: pretrain_backbone.py [CONFIG] [key=value ...] [--output DIR] [--resume].

Its run folder also holds `backbone.safetensors`, for a detector's `model.backbone.weights`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import parse_training, run_command

DEMO = Path(__file__).resolve().parent.parent / "configs" / "backbones" / "demo_objects.yaml"


def main() -> None:
    """Parse, load the config, train, export."""
    words = parse_training("Train a classifier; on many GPUs with torchrun.", default=DEMO)

    from backbones.classification.config import SCHEMAS, ClassificationConfig
    from engine.config import load_config

    config = load_config(words.config, words.overrides, schemas=SCHEMAS)
    assert isinstance(config, ClassificationConfig)

    from backbones.classification.trained import export_backbone
    from backbones.curves import write_curves
    from detection.tasks import build_task
    from engine.trainer import fit

    task = build_task(config)
    metrics = fit(
        task, config, output=words.output, replace=True, resume=words.resume, device=words.device
    )
    if words.is_main:
        export_backbone(words.output, metrics=metrics, device=words.device)
        write_curves(words.output)


if __name__ == "__main__":
    run_command(main)
