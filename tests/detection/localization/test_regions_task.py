"""Second stage of localization: losses on the first stage's proposals, predictions, a run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detection.commands.tasks import build_task, load_task
from detection.localization.config import LocalizationRegionsConfig
from detection.localization.regions_task import LocalizationRegionsTask
from detection.ops.boxes import flip_boxes
from detection.structures import DetectionBatch
from engine.errors import UserError
from engine.evaluate import evaluate
from engine.trainer import fit
from tests.detection.localization.tiny_localizer import (
    regions_config,
    train_a_dozen_steps,
    train_first_stage,
)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_first_stage(tmp_path_factory.mktemp("first"))


def task_and_batch(
    config: LocalizationRegionsConfig,
) -> tuple[LocalizationRegionsTask, DetectionBatch]:
    task = build_task(config)
    assert isinstance(task, LocalizationRegionsTask)
    data = task.train_data()
    return task, data.collate([data.load(index, 100 + index) for index in range(len(data))])


@pytest.mark.slow
def test_training_lowers_the_loss_and_keeps_the_first_stage(first: Path) -> None:
    config = regions_config(first)
    task, batch = task_and_batch(config)
    before = {n: p.clone() for n, p in task._first[0].state_dict().items()}
    names, ratio = train_a_dozen_steps(task, config, batch)
    assert names == {"roi_class", "roi_box"}
    assert ratio < 0.7
    torch.testing.assert_close(dict(task._first[0].state_dict()), before, rtol=0, atol=0)
    assert not any("first" in name for name, _ in task.named_parameters())


def test_every_parameter_gets_a_gradient(first: Path) -> None:
    task, batch = task_and_batch(regions_config(first))
    torch.stack(list(task.losses(batch).values())).sum().backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


@pytest.mark.parametrize("kind", ["vgg16", "plain18"])
def test_other_backbones_classify_regions(first: Path, kind: str) -> None:
    backbone = {"kind": kind, "width_multiplier": 0.0625, "norm": "batch", "frozen_stages": 0}
    task, batch = task_and_batch(regions_config(first, backbone=backbone))
    torch.stack(list(task.losses(batch).values())).sum().backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


def test_regions_are_proposals_of_the_class(first: Path) -> None:
    task, batch = task_and_batch(regions_config(first, nms_thresh=0.5))
    task.model.eval()
    label = batch.targets.labels[:, 0]
    proposals = task._propose(batch.images, label, whole=True)
    assert proposals.boxes.shape == (8, 10, 4)
    assert proposals.valid[:, 0].all()
    assert (proposals.scores.diff(dim=1) <= 0).all()
    assert proposals.boxes.max() <= batch.images.sizes.max()
    boxes, scores = task.locate(batch.images, torch.stack([label, 1 - label], dim=1))
    assert boxes.shape == (8, 2, 4)
    assert boxes.isfinite().all()
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.extended
def test_mirrored_regions_are_averaged(first: Path) -> None:
    config = regions_config(first)
    mirror = config.evaluation.model_copy(update={"mirror": True})
    task, batch = task_and_batch(config.model_copy(update={"evaluation": mirror}))
    task.model.eval()
    label = batch.targets.labels[:, :1]
    boxes, scores = task.locate(batch.images, label)
    flipped = replace(batch.images, pixels=batch.images.pixels.flip(3))
    mirrored, mirrored_scores = task.locate(flipped, label)
    # an image and its mirror image have the same two views
    torch.testing.assert_close(mirrored_scores, scores, rtol=1e-4, atol=1e-5)
    width = batch.images.pixels.shape[3]
    factor = (batch.images.original_sizes[:, 1] / width)[:, None, None]
    torch.testing.assert_close(flip_boxes(mirrored / factor, width) * factor, boxes)


@pytest.mark.extended
def test_loaded_run_has_the_same_score(first: Path, tmp_path: Path) -> None:
    config = regions_config(first)
    scored = fit(build_task(config), config, output=tmp_path / "run", device="cpu")
    again = load_task([tmp_path / "run"])
    assert isinstance(again, LocalizationRegionsTask)
    assert evaluate(again, again.config, device="cpu")["mean_iou"] == scored["mean_iou"]


@pytest.mark.extended
def test_a_second_stage_is_refused_as_first_stage(first: Path, tmp_path: Path) -> None:
    config = regions_config(first)
    fit(build_task(config), config, output=tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="expected a run of task localization, got localization_re"):
        build_task(regions_config(first, localizer=str(tmp_path / "run")))
