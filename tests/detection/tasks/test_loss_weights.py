"""Each loss of a task is multiplied by its own weight."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.localization.task import LocalizationTask
from detection.tasks.detection import DetectionTask
from detection.tasks.segmentation import SegmentationTask
from tests.detection.localization.tiny_localizer import tiny_config as localizer_config
from tests.detection.localization.tiny_localizer import write_tiny_imagenet
from tests.detection.tasks.tiny import tiny_task

# by the first part of a loss's name: `roi_box_2` is of the second stage
WEIGHTS = {
    "rpn_objectness": ("rpn", "objectness_weight", 2.0),
    "rpn_box": ("rpn", "box_weight", 3.0),
    "roi_class": ("roi", "class_weight", 5.0),
    "roi_box": ("roi", "box_weight", 7.0),
    "mask": ("mask", "weight", 11.0),
}


def assert_multiplied(
    found: Mapping[str, torch.Tensor], plain: Mapping[str, torch.Tensor], by: Mapping[str, float]
) -> None:
    assert set(found) == set(plain)
    assert all(value > 1e-6 for value in plain.values()), plain
    factors = {name: by[name.removesuffix("_2")] for name in plain}
    expected = {name: value * factors[name] for name, value in plain.items()}
    torch.testing.assert_close(dict(found), expected)


@pytest.mark.parametrize("name", ["detection", "segmentation"])
def test_a_detector_s_losses_have_their_own_weights(tmp_path: Path, name: str) -> None:
    task, batch = tiny_task(tmp_path, "fpn", task=name, model={"roi": {"stages": 2}})
    assert isinstance(task, SegmentationTask if name == "segmentation" else DetectionTask)
    plain = task.losses(batch)
    model = task.config.model
    parts: dict[str, dict[str, float]] = {"rpn": {}, "roi": {}, "mask": {}}
    for part, key, value in WEIGHTS.values():
        parts[part][key] = value
    changed: dict[str, Any] = {
        part: getattr(model, part).model_copy(update=values) for part, values in parts.items()
    }
    task.config = task.config.model_copy(update={"model": model.model_copy(update=changed)})
    by = {loss: value for loss, (_, _, value) in WEIGHTS.items()}
    assert_multiplied(task.losses(batch), plain, by)


def test_a_localizer_s_losses_have_their_own_weights(tmp_path: Path) -> None:
    config = localizer_config(write_tiny_imagenet(tmp_path))
    task = LocalizationTask.for_training(config)
    data = task.train_data()
    batch = data.collate([data.load(index, 100 + index) for index in range(4)])
    task.model.eval()
    plain = task.losses(batch)
    model = config.model.model_copy(update={"class_weight": 2.0, "box_weight": 3.0})
    task.config = config.model_copy(update={"model": model})
    by = {"localization_class": 2.0, "localization_box": 3.0}
    assert_multiplied(task.losses(batch), plain, by)
