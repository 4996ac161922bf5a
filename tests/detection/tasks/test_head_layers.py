"""Layers of RPN, box head and mask head by key, as tasks train them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones.prediction import prepare_for_prediction
from detection.config import SCHEMAS
from detection.tasks.detection import DetectionTask
from detection.tasks.segmentation import SegmentationTask
from engine.config import parse_config
from engine.distributed import World
from engine.errors import UserError
from engine.schema import LoopConfig
from engine.sync_norm import MaskedBatchNorm2d, synchronise_norms
from tests.detection.tasks.tiny import TODAYS, tiny_task


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def watch(task: DetectionTask, head: str) -> list[tuple[Tensor, Tensor]]:
    """Return a list that gets the inputs and the valid rows of a head's first norm."""
    seen: list[tuple[Tensor, Tensor]] = []
    norm = task.model.get_submodule(f"{head}.convs.norm1")
    norm.register_forward_hook(lambda module, args, output: seen.append(args))
    return seen


def statistics(task: DetectionTask) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.model.named_buffers()}


def test_norms_of_heads_see_the_samples_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = tiny_task(root, "fpn", task="segmentation", model=TODAYS)
    # as on a GPU: a fixed number of rows in the mask head
    monkeypatch.setattr("detection.tasks.segmentation.most_foreground", lambda _, limit: limit)
    seen = {head: watch(task, head) for head in ("box_head", "mask_head")}
    _, ((_, rois, _),) = task.box_losses(batch)
    for values in seen.values():
        values.clear()
    task.losses(batch)
    assert isinstance(task, SegmentationTask)
    limit = task._max_foreground()
    expected = {"box_head": rois.valid, "mask_head": rois.is_fg[:, :limit]}
    for head, wanted in expected.items():
        ((x, valid),) = seen[head]
        assert torch.equal(valid, wanted.flatten())
        assert 0 < valid.sum() < len(valid)
        norm = task.model.get_submodule(f"{head}.convs.norm1")
        assert isinstance(norm, MaskedBatchNorm2d)
        plain = nn.BatchNorm2d(16).train()
        for _ in range(2 if head == "box_head" else 1):  # `box_losses` above was the first
            plain(x[valid])
        torch.testing.assert_close(norm.running_mean, plain.running_mean)
        torch.testing.assert_close(norm.running_var, plain.running_var)


def test_fixed_numbers_of_rows_change_no_loss_and_no_statistics(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[Any] = []
    for fixed in (False, True):
        task, batch = tiny_task(root, "fpn", task="segmentation", model=TODAYS)
        if fixed:
            name = "detection.tasks.segmentation.most_foreground"
            monkeypatch.setattr(name, lambda _, limit: limit)
        losses = task.losses(batch)
        torch.stack(list(losses.values())).sum().backward()
        gradients = {name: p.grad for name, p in task.model.named_parameters()}
        results.append([losses, statistics(task), gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert all(gradient is not None for gradient in results[0][2].values())


def test_predictions_use_running_statistics(root: Path) -> None:
    task, batch = tiny_task(root, "fpn", task="segmentation", model=TODAYS)
    task.losses(batch)
    task.eval()
    before = statistics(task)
    features = task.model.features(batch.images)
    boxes = torch.tensor([[8.0, 8.0, 60.0, 60.0], [0.0, 0.0, 90.0, 40.0]]).expand(4, -1, -1)
    valid = torch.zeros(4, 2, dtype=torch.bool)
    regions = task.model.region_features(features, boxes)
    for found, alone in (
        (
            task.model.box_outputs(regions, valid=valid)[0],
            task.model.box_outputs(regions[:, :1])[0],
        ),
        (
            task.model.mask_logits(features, boxes, valid=valid),
            task.model.mask_logits(features, boxes[:, :1]),
        ),
    ):
        torch.testing.assert_close(found[:, :1], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics(task), before, rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_four_parts_are_synchronised(root: Path, device: str) -> None:
    task, _ = tiny_task(root, "fpn", task="segmentation", model=TODAYS)
    synchronise_norms(task.model, World(0, 2, torch.device(device)))
    norms = {
        name: isinstance(each, nn.SyncBatchNorm) or getattr(each, "is_synchronised", False)
        for name, each in task.model.named_modules()
        if isinstance(each, _BatchNorm)
    }
    assert all(norms.values())
    parts = [name.partition(".")[0] for name in norms]
    assert {part: parts.count(part) for part in parts} == {
        "backbone": 20, "fpn": 8, "box_head": 2, "mask_head": 2,
    }  # fmt: skip


def test_prepared_heads_predict_what_they_did(root: Path) -> None:
    task, batch = tiny_task(root, "fpn", task="segmentation", model=TODAYS)
    for _ in range(2):
        task.losses(batch)
    task.eval()
    boxes = torch.tensor([[8.0, 8.0, 60.0, 60.0], [0.0, 0.0, 90.0, 40.0]]).expand(4, -1, -1)

    def predict() -> list[Tensor]:
        features = task.model.features(batch.images)
        regions = task.model.region_features(features, boxes)
        return [*task.model.box_outputs(regions), task.model.mask_logits(features, boxes)]

    with torch.no_grad():
        before = predict()
        config = LoopConfig(precision="fp32")
        prepare_for_prediction(task.model, config, device=torch.device("cpu"))
        torch.testing.assert_close(predict(), before, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(each, _BatchNorm) for each in task.model.modules())


def test_every_stage_has_its_own_layers(root: Path) -> None:
    model = {**TODAYS, "roi": {**TODAYS["roi"], "stages": 2}}
    task, batch = tiny_task(root, "fpn", model=model)
    task.losses(batch)
    means = [
        task.model.get_buffer(f"{stage}box_head.convs.norm2.running_mean")
        for stage in ("", "later_stages.0.")
    ]
    assert all(mean.any() for mean in means)
    assert not torch.equal(*means)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_forward_and_backward_compile_into_one_graph(root: Path, kind: str) -> None:
    results = []
    for compiled in (True, False):
        task, batch = tiny_task(root, "fpn", task=kind, model=TODAYS)
        run = torch.compile(
            task.losses, backend="aot_eager", fullgraph=compiled, disable=not compiled
        )
        losses = run(batch)
        torch.stack(list(losses.values())).sum().backward()
        gradients = {name: p.grad for name, p in task.model.named_parameters()}
        results.append([losses, statistics(task), gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


REFUSED = {
    "convolutions on c4": (
        ["model.roi.num_convs=1"],
        "roi.num_convs: expected 0 with neck.kind=c4",
    ),
    "a norm in the neck c4": (
        ["model.neck.norm=group"],
        "neck.norm: expected none with neck.kind=c4",
    ),
    "a norm of no convolution": (
        ["model.neck.kind=fpn", "model.roi.norm=batch"],
        "roi.norm: expected none with roi.num_convs=0 (no convolution has a norm), got batch",
    ),
    "statistics of one region": (
        [
            *("model.neck.kind=fpn", "model.roi.norm=batch", "model.roi.num_convs=1"),
            "model.roi.global_context=true",
        ],
        "roi.norm: expected none or group with roi.global_context",
    ),
    "mask on c4": (
        ["model.mask.norm=group"],
        "mask.norm: expected none with neck.kind=c4 (the mask head has no 3x3 convolution)",
    ),
    "mask without convolutions": (
        ["model.neck.kind=fpn", "model.mask.norm=group", "model.mask.num_convs=0"],
        "mask.norm: expected none with mask.num_convs=0",
    ),
    "no convolution in the RPN": (["model.rpn.num_convs=0"], "model.rpn.num_convs"),
    "no linear layer": (["model.roi.num_fcs=0"], "model.roi.num_fcs"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config({}, overrides, schemas=SCHEMAS, source="test")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
