"""Tiny classification run for tests: two colours in ImageNet's layout, an 8-layer ResNet."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbones.classification.config import SCHEMAS, ClassificationConfig
from backbones.classification.operations import (
    Operation,
    OperationRanges,
    apply_operation,
    operation_value,
)
from engine.config import parse_config

SIDE = 40


def write_folder(root: Path, *, num_train: int = 8, num_val: int = 4) -> Path:
    """Write train/{blue,red} and val/{blue,red}: noise, brighter in the class's channel."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_val)):
        for channel, name in ((2, "blue"), (0, "red")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, size=(SIDE, SIDE + 8 * (number % 2), 3))
                pixels[..., channel] += 100
                path = root / split / name / f"{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def tiny_config(root: Path, **changes: Any) -> ClassificationConfig:
    """Return the config of a short run; `changes` replace whole sections, but `loop` is merged."""
    values: dict[str, Any] = {
        "task": "classification",
        "data": {"root": str(root)},
        "augment": {"crop": 32, "area": [0.5, 1.0]},
        "model": {"backbone": {"kind": "cifar_resnet8"}},
        "evaluation": {"resize": 36, "crop": 32},
        "optim": {"lr": 0.05},
        "loader": {"workers": 0},
    }
    loop = {"max_steps": 4, "batch_size": 4, "log_every": 2} | changes.pop("loop", {})
    config = parse_config(values | changes | {"loop": loop}, schemas=SCHEMAS, source="test")
    assert isinstance(config, ClassificationConfig)
    return config


def operate(
    pixels: np.ndarray, name: str, ranges: OperationRanges, *, strength: float
) -> np.ndarray:
    """Return the image after operation `name` of a strength in [-1, 1]."""
    return apply_operation(pixels, Operation(name, operation_value(name, ranges, strength)))
