"""A cascade trains as published: its stages' samples, losses and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask, Regions
from tests.detection.tasks.tiny import tiny_task
from tests.reference import cascade as reference

STAGES = 3
THRESHOLDS = (0.5, 0.6, 0.7)
WEIGHTS = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def make_cascade(
    root: Path, neck: str, *, task: str = "detection", **roi: Any
) -> tuple[DetectionTask, DetectionBatch]:
    """Return a cascade whose output layers say something of every box."""
    torch.manual_seed(1)
    made, batch = tiny_task(root, neck, task=task, model={"roi": {"stages": STAGES, **roi}})
    for name, module in made.model.named_modules():
        if name.endswith("box_predictor.deltas"):
            assert isinstance(module, nn.Linear)
            nn.init.normal_(module.weight, std=0.1)
    return made, batch


def outputs_of(
    task: DetectionTask, inputs: Regions, stage: int, image: int
) -> list[reference.Output]:
    """Return what a stage says of the valid samples of an image."""
    logits, deltas = task.model.box_outputs(inputs.pooled, stage=stage)
    samples = inputs.samples
    return [
        reference.Output(
            samples.boxes[image, row].tolist(),
            logits[image, row].tolist(),
            deltas[image, row].tolist(),
        )
        for row in samples.valid[image].nonzero()[:, 0].tolist()
    ]


@pytest.mark.parametrize("neck", ["c4", "fpn"])
@pytest.mark.parametrize("agnostic", [True, False], ids=["one box", "a box a class"])
def test_samples_and_losses_are_the_references(root: Path, neck: str, agnostic: bool) -> None:
    task, batch = make_cascade(root, neck, class_agnostic_boxes=agnostic)
    losses, inputs = task.box_losses(batch)
    targets = batch.targets
    objects = [
        [
            reference.Object(targets.boxes[image, row].tolist(), int(targets.labels[image, row]))
            for row in targets.valid[image].nonzero()[:, 0].tolist()
        ]
        for image in range(len(batch))
    ]
    outputs = [
        [outputs_of(task, inputs[stage], stage, image) for image in range(len(batch))]
        for stage in range(STAGES)
    ]
    for stage, suffix in enumerate(("", "_2", "_3")):
        class_loss, box_loss = reference.stage_losses(
            outputs[stage],
            objects,
            iou_thresh=THRESHOLDS[stage],
            weights=WEIGHTS[stage],
            beta=task.config.model.roi.smooth_l1_beta,
        )
        assert losses[f"roi_class{suffix}"].item() == pytest.approx(class_loss, rel=1e-4)
        assert losses[f"roi_box{suffix}"].item() == pytest.approx(box_loss, rel=1e-3, abs=1e-5)
        if stage == 0:
            continue
        for image, size in enumerate(batch.images.sizes.tolist()):
            before = outputs[stage - 1][image]
            expected = reference.next_boxes(before, size, WEIGHTS[stage - 1])
            found = [output.box for output in outputs[stage][image]]
            torch.testing.assert_close(
                torch.tensor(sorted(found)), torch.tensor(sorted(expected)), rtol=1e-4, atol=1e-2
            )


@pytest.mark.parametrize("stages", [1, STAGES])
@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_each_stage_gives_the_features_its_share_of_the_gradient(
    root: Path, neck: str, stages: int
) -> None:
    task, batch = make_cascade(root, neck, stages=stages)
    losses, inputs = task.box_losses(batch)
    for stage in range(stages):
        loss = losses["roi_class" if stage == 0 else f"roi_class_{stage + 1}"]
        (found,) = torch.autograd.grad(loss, inputs[stage].pooled, retain_graph=True)
        pooled = inputs[stage].pooled.detach().requires_grad_()
        logits, _ = task.model.box_outputs(pooled, stage=stage)
        samples = inputs[stage].samples
        labels = batch.targets.labels.gather(1, samples.gt_idxs)
        labels = labels.masked_fill(~samples.is_fg, logits.shape[2] - 1)[samples.valid]
        direct = nn.functional.cross_entropy(logits[samples.valid], labels)
        torch.testing.assert_close(direct, loss)
        (whole,) = torch.autograd.grad(direct, pooled)
        torch.testing.assert_close(found, whole / stages)


@pytest.mark.parametrize("neck", ["c4", "fpn"])
def test_masks_train_as_with_one_stage(root: Path, neck: str) -> None:
    """On the first stage's samples, and with the whole gradient."""
    cascade, batch = make_cascade(root, neck, task="segmentation")
    single, _ = make_cascade(root, neck, task="segmentation", stages=1)
    state = {name: x for name, x in cascade.model.state_dict().items() if "later_" not in name}
    single.model.load_state_dict(state)
    gradients = []
    for task in (cascade, single):
        loss = task.losses(batch)["mask"]
        assert task.model.mask_head is not None
        weights = [task.model.backbone.get_parameter("layer4.0.conv1.weight")]
        gradients.append([loss, *torch.autograd.grad(loss, weights)])
    assert gradients[0][1].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_boxes_without_area_are_not_passed_on(root: Path) -> None:
    task, batch = make_cascade(root, "fpn", class_agnostic_boxes=True)
    predictor = task.model.box_predictor
    nn.init.zeros_(predictor.deltas.weight)
    # every box moves out of its image to the right, where clipping leaves nothing of it
    predictor.deltas.bias.data.copy_(torch.tensor([1e4, 0.0, 0.0, 0.0]))
    losses, inputs = task.box_losses(batch)
    assert inputs[0].samples.valid.any()
    assert not inputs[1].samples.valid.any()
    assert losses["roi_class_2"] == losses["roi_box_3"] == 0
