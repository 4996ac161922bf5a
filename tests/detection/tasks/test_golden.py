"""Losses of a tiny detector under a fixed seed: a refactor leaves them as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detection.commands.tasks import build_task
from detection.ops.masks import pack_bits
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


MASK = {"c4": 0.745383, "fpn": 1.109730}


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
    masks = np.zeros((2, 8, 96, 128), np.bool_)
    for mask, box in zip(masks.reshape(-1, 96, 128), boxes.flatten(0, 1).tolist(), strict=True):
        x1, y1, x2, y2 = map(int, box)
        mask[y1:y2, x1 : (x1 + x2) // 2] = True  # the left half of the box
    packed = torch.from_numpy(pack_bits(masks))
    return DetectionBatch(images, Targets(boxes, labels, valid, is_crowd, packed))


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("neck", GOLDEN)
def test_losses_are_the_recorded_ones(tmp_path: Path, neck: str, task: str) -> None:
    made = build_task(tiny_config(tmp_path / "demo", neck=neck, task=task))
    assert isinstance(made, DetectionTask)
    if made.model.mask_head is not None:  # at first all masks are 0.5, whatever the features
        with torch.no_grad():
            made.model.mask_head.logits.weight *= 300
    found = {name: value.item() for name, value in made.losses(fixed_batch()).items()}
    expected = GOLDEN[neck] | ({"mask": MASK[neck]} if task == "segmentation" else {})
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
