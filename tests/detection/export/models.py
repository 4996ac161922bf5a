"""Small trained models to export, and images of several sizes."""

from pathlib import Path
from typing import Any

import numpy as np

from backbones.images import images_in, read_image
from detection.config import DetectionConfig
from detection.data.coco import ClassMap
from detection.inference.trained import TrainedDetector
from tests.detection.inference.networks import make_config, make_network
from tests.reference.images import smooth_image

SIZES = ((60, 80), (33, 77), (200, 150), (64, 64))
"""Images that grow, grow much, shrink, and are not resized at a short side of 64."""


def make_trained(kind: str = "resnet18", **settings: Any) -> TrainedDetector:
    """Return a small detector; settings: as for `make_config`."""
    values = make_config(**settings).model_dump()
    values["model"]["backbone"]["kind"] = kind
    values["loop"]["precision"] = "fp32"
    config = DetectionConfig.model_validate(values)
    classes = ClassMap(("cat", "dog", "bird"), (1, 5, 9))
    return TrainedDetector(config, classes, make_network(config))


def make_images() -> list[np.ndarray]:
    """Return smooth images of `SIZES`, (H, W, 3) uint8."""
    return [smooth_image(*size) for size in SIZES]


def coco_images(data_dir: Path, count: int = 16) -> list[np.ndarray]:
    """Return images of coco128, of different sizes."""
    folder = data_dir / "coco128" / "train2017"
    names, _ = images_in(folder)
    return [read_image(folder / name) for name in names[:count]]
