"""The order of what is done to a training batch: erased, then mixed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backbones.classification.batch_transforms import mixup_cutmix, random_erase, smooth_targets
from backbones.classification.task import ClassificationTask
from tests.backbones.classification.tiny import tiny_config, write_folder

MIXES: dict[str, dict[str, float]] = {
    "mixup": {"mixup_alpha": 0.5, "cutmix_alpha": 0.0},
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
}


@pytest.mark.parametrize("alphas", MIXES.values(), ids=MIXES)
def test_an_image_is_erased_before_it_is_mixed(tmp_path: Path, alphas: dict[str, float]) -> None:
    augment = {"crop": 32, "erasing_prob": 1.0, **alphas}
    task = ClassificationTask.for_training(tiny_config(write_folder(tmp_path), augment=augment))
    data: Any = task.train_data()
    batch = data.collate([data.load(index, seed=100 + index) for index in range(6)])
    seen: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    task.losses(batch)

    targets = smooth_targets(batch.labels, 2, 0.0)
    pixels = task.model.normalize(batch.pixels)
    expected, _ = mixup_cutmix(
        random_erase(pixels, batch.seeds, prob=1.0), targets, batch.seeds, **alphas
    )
    turned = random_erase(
        mixup_cutmix(pixels, targets, batch.seeds, **alphas)[0], batch.seeds, prob=1.0
    )
    assert (expected - turned).abs().max() > 1  # the order shows
    torch.testing.assert_close(seen, [expected])
