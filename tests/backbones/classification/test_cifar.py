"""CIFAR-10 dataset, and the accuracy of published networks on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from backbones.classification.cifar import CifarDataset
from backbones.classification.config import SCHEMAS, ClassificationConfig, DataConfig
from backbones.classification.task import ClassificationTask
from engine.config import load_config
from engine.errors import UserError
from engine.evaluate import evaluate

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "backbones"


def cifar(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(kind="cifar10", root=str(root), **changes)


@pytest.mark.extended
def test_images_equal_torchvisions(cifar_root: Path) -> None:
    ours = CifarDataset.validation(cifar(cifar_root))
    theirs = CIFAR10(cifar_root, train=False)
    assert len(ours) == len(theirs) == 10_000
    assert ours.class_names == tuple(theirs.classes)
    rows = [0, 17, 9999]
    batch = ours.collate([ours.load(row, seed=row + 1) for row in rows])
    assert batch.image_ids.tolist() == rows
    assert batch.seeds.tolist() == [1, 18, 10_000]
    for place, row in enumerate(rows):
        image, label = theirs[row]
        assert batch.labels[place] == label
        assert np.array_equal(batch.pixels[place].permute(1, 2, 0), image)
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.extended
def test_held_out_images_are_not_in_the_training_set(cifar_root: Path) -> None:
    everything = CifarDataset.training(cifar(cifar_root))
    kept = CifarDataset.training(cifar(cifar_root, holdout=5000))
    held_out = CifarDataset.validation(cifar(cifar_root, holdout=5000))
    assert (len(everything), len(kept), len(held_out)) == (50_000, 45_000, 5_000)
    together = sorted(p.tobytes() for part in (kept, held_out) for p in part.pixels)
    assert together == sorted(p.tobytes() for p in everything.pixels)
    assert "5000 training images are held out" in kept.notes[0]
    again = CifarDataset.validation(cifar(cifar_root, holdout=5000))
    assert np.array_equal(again.pixels, held_out.pixels)


def test_holding_out_all_images_is_an_error(cifar_root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.holdout: expected less than 50000, got 50000"):
        CifarDataset.training(cifar(cifar_root, holdout=50_000))


def test_missing_files_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root .*: expected cifar-10-batches-py/"):
        CifarDataset.training(cifar(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9173), (56, 0.9339)])
def test_published_networks_reach_their_published_scores(
    cifar_root: Path, data_dir: Path, depth: int, accuracy: float
) -> None:
    weights = next((data_dir / "cifar_resnet_weights").glob(f"resnet{depth}*"))
    overrides = [
        f"data.root={cifar_root}",
        f"model.backbone.weights={weights}",
        "model.backbone.pixel_mean=[123.675, 116.28, 103.53]",
        "model.backbone.pixel_std=[58.395, 57.12, 57.375]",
        "loop.drawn_images=0",
    ]
    path = CONFIGS / f"resnet{depth}_cifar10.yaml"
    config = load_config(path, overrides, schemas=SCHEMAS)
    assert isinstance(config, ClassificationConfig)
    metrics = evaluate(ClassificationTask.for_training(config), config, device="cpu")
    assert metrics["top1"] == accuracy
