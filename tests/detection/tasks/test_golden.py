"""Losses of a tiny detector under a fixed seed: a refactor leaves them as they are."""

from pathlib import Path

import pytest
import torch

from detection.structures import DetectionBatch, ImageBatch, Targets
from detection.tasks.detection import DetectionTask
from tests.detection.tasks.tiny import tiny_config

GOLDEN = {
    "c4": {
        "rpn_objectness": 0.706446,
        "rpn_box": 0.0246144,
        "roi_class": 1.743137,
        "roi_box": 0.499140,
    },
    "fpn": {  # every foreground region is the truth itself, so there is almost no box loss
        "rpn_objectness": 0.699046,
        "rpn_box": 0.0352644,
        "roi_class": 1.941817,
        "roi_box": 0.0,
    },
}


def fixed_batch() -> DetectionBatch:
    generator = torch.Generator().manual_seed(5)
    boxes = torch.zeros(2, 8, 4)
    boxes[0, :2] = torch.tensor([[8.0, 10.0, 60.0, 70.0], [40.0, 30.0, 120.0, 90.0]])
    boxes[1, :3] = torch.tensor([[0.0, 0, 30, 30], [50, 20, 70, 90], [10, 40, 100, 96]])
    valid = boxes[..., 2] > 0
    is_crowd = torch.zeros_like(valid)
    is_crowd[1, 2] = True
    images = ImageBatch(
        pixels=torch.randint(256, (2, 3, 96, 128), dtype=torch.uint8, generator=generator),
        sizes=torch.tensor([[96, 128], [96, 110]]),
        original_sizes=torch.tensor([[192, 256], [96, 110]]),
        image_ids=torch.tensor([1, 2]),
        seeds=torch.tensor([11, 12]),
    )
    labels = torch.arange(8).expand(2, -1) % 6 * valid
    return DetectionBatch(images, Targets(boxes, labels, valid, is_crowd))


@pytest.mark.parametrize("neck", GOLDEN)
def test_losses_are_the_recorded_ones(tmp_path: Path, neck: str) -> None:
    task = DetectionTask.for_training(tiny_config(tmp_path / "demo", neck=neck))
    found = {name: value.item() for name, value in task.losses(fixed_batch()).items()}
    assert found == pytest.approx(GOLDEN[neck], rel=1e-3, abs=1e-4)
