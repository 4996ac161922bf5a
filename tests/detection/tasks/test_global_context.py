"""Global context: the feature of the whole image beside that of each RoI, trained end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detection.commands.tasks import build_task, load_task
from detection.losses import roi_loss
from detection.models.faster_rcnn import FasterRCNN
from detection.samples import class_labels
from detection.tasks.detection import DetectionTask
from detection.weights import load_detector_weights
from engine.checkpoint import read_safetensors, write_safetensors
from engine.errors import UserError
from engine.trainer import fit
from tests.detection.inference.networks import NECKS, make_config, make_network
from tests.detection.tasks.tiny import tiny_config, tiny_task
from tests.reference.inference import layers_of

CONTEXT = {"roi": {"global_context": True, "num_samples": 6, "hidden_dim": 16, "resolution": 4}}


def random_maps(network: FasterRCNN, size: tuple[int, int], count: int) -> dict[str, Tensor]:
    """Return random float64 feature maps of images of a size."""
    channels = 256 if network.fpn is None else 8
    return {
        level: torch.randn(
            count, channels, *(-(-side // stride) for side in size), dtype=torch.float64
        )
        for level, stride in zip(network.roi_levels, network.roi_strides, strict=True)
    }


def joined_outputs(
    network: FasterRCNN, maps: dict[str, Tensor], box: Tensor, size: Tensor, stage: int
) -> tuple[Tensor, Tensor]:
    """Return the logits and deltas of one RoI of one image, with the whole image as another."""
    height, width = size.tolist()
    whole = torch.tensor([0.0, 0.0, width, height])
    head, outputs = layers_of(network, stage)
    of_roi, of_image = (
        head(network.region_features(maps, each[None, None])[0]) for each in (box, whole)
    )
    logits, deltas = outputs(torch.cat([of_roi, of_image], dim=1))
    return logits[0], deltas[0]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("pool", ["roi_align", "roi_pool"])
@pytest.mark.parametrize("neck", NECKS)
@torch.no_grad()
def test_outputs_are_those_of_joined_features(neck: str, pool: str) -> None:
    roi = {"global_context": True, "stages": 2, "pool": pool}
    network = make_network(make_config(neck, roi=roi)).double()
    sizes = torch.tensor([[300, 400], [290, 350]])
    maps = random_maps(network, (300, 400), 2)
    boxes = torch.tensor(
        [
            [[0.0, 0, 400, 300], [10, 20, 300, 200], [7, 7, 7, 7]],
            [[0, 0, 350, 290], [340, 0, 350, 290], [-9, -9, 900, 900]],
        ]
    )
    for stage in range(2):
        context = network.context_features(maps, sizes)
        logits, deltas = network.box_outputs(
            network.region_features(maps, boxes), stage=stage, context=context
        )
        assert logits.dtype == deltas.dtype == torch.float64
        for row in range(2):
            of_image = {name: each[row][None] for name, each in maps.items()}
            for index, box in enumerate(boxes[row]):
                expected = joined_outputs(network, of_image, box, sizes[row], stage)
                torch.testing.assert_close((logits[row, index], deltas[row, index]), expected)
        none = network.box_outputs(
            network.region_features(maps, boxes[:, :0]), stage=stage, context=context
        )
        assert (none[0].shape, none[1].shape) == ((2, 0, 4), (2, 0, 3, 4))


class Outputs(nn.Module):
    """The outputs of a detector's region head as a module's, for other weights."""

    def __init__(self, network: FasterRCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, maps: dict[str, Tensor], boxes: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return class logits and deltas."""
        context = self.network.context_features(maps, sizes)
        return self.network.box_outputs(self.network.region_features(maps, boxes), context=context)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("neck", NECKS)
def test_gradients_are_those_of_differences(neck: str) -> None:
    roi = {"global_context": True, "resolution": 2}
    network = make_network(make_config(neck, roi=roi)).double()
    maps = random_maps(network, (64, 96), 1)
    names = ["network.box_predictor.class_logits.weight", "network.box_predictor.deltas.weight"]
    module = Outputs(network)
    weights = [module.get_parameter(name).detach().requires_grad_() for name in names]
    boxes = torch.tensor([[[5.0, 5, 40, 50], [0, 0, 96, 64]]])
    sizes = torch.tensor([[64, 96]])

    def outputs(*values: Tensor) -> Any:
        own = dict(zip(names, values[: len(names)], strict=True))
        given = dict(zip(maps, values[len(names) :], strict=True))
        return torch.func.functional_call(module, own, (given, boxes, sizes))

    inputs = [*weights, *(each.requires_grad_() for each in maps.values())]
    assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)


@pytest.mark.extended
@pytest.mark.parametrize("neck", NECKS)
def test_losses_are_those_of_each_roi_with_its_image(tmp_path: Path, neck: str) -> None:
    task, batch = tiny_task(tmp_path, neck, model=tiny_model(neck))
    losses, ((features, rois, _),) = task.box_losses(batch)
    rows = []
    for row, size in enumerate(batch.images.sizes):
        maps = {name: each[row][None] for name, each in features.items()}
        rows.append([joined_outputs(task.model, maps, box, size, 0) for box in rois.boxes[row]])
    logits, deltas = (
        torch.stack([torch.stack([each[part] for each in row]) for row in rows]) for part in (0, 1)
    )
    labels = class_labels(rois, batch.targets, num_classes=len(task.class_names))
    beta = task.config.model.roi.smooth_l1_beta
    expected = roi_loss(logits, deltas, labels, rois.target_deltas, rois.valid, beta=beta)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)
    given, same = (
        gradients_of(task.model, each) for each in (losses["roi_class"], expected["roi_class"])
    )
    assert given.keys() == same.keys()
    for name, gradient in given.items():
        torch.testing.assert_close(gradient, same[name], rtol=1e-3, atol=1e-5)


def tiny_model(neck: str) -> dict[str, Any]:
    """Return the `model` section of a detector that is smaller than `tiny_config`'s."""
    return {
        "backbone": {"kind": "resnet18", "norm": "group", "frozen_stages": 0},
        "neck": {"kind": neck, "channels": 8},
        **CONTEXT,
    }


def gradients_of(model: FasterRCNN, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of each parameter that has one."""
    named = dict(model.named_parameters())
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: value for name, value in zip(named, values, strict=True) if value is not None}


@pytest.mark.extended
@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("stages", [1, 3])
def test_gradients_reach_both_halves_and_the_backbone_by_way_of_the_image(
    tmp_path: Path, neck: str, stages: int
) -> None:
    model = tiny_model(neck)
    model["roi"] = {**model["roi"], "stages": stages}
    task, batch = tiny_task(tmp_path, neck, model=model)
    losses = task.losses(batch)
    gradients = gradients_of(task.model, torch.stack(list(losses.values())).sum())
    assert gradients.keys() == dict(task.model.named_parameters()).keys()
    prefixes = ["", *(f"later_stages.{stage}." for stage in range(stages - 1))]
    for prefix in prefixes:
        for layer in ("class_logits", "deltas"):
            gradient = gradients[f"{prefix}box_predictor.{layer}.weight"]
            for half in gradient.chunk(2, dim=1):
                assert half.abs().amax() > 0
    features = task.model.features(batch.images)
    context = task.model.context_features(features, batch.images.sizes)
    assert context is not None
    first = task.model.get_parameter("backbone.conv1.weight")
    (of_first,) = torch.autograd.grad(context.sum(), [first])
    assert of_first.abs().amax() > 0


@pytest.mark.extended
@pytest.mark.parametrize("neck", [pytest.param("c4", marks=pytest.mark.slow), "fpn"])
def test_a_run_resumes_to_the_bit_and_loads(tmp_path: Path, neck: str) -> None:
    root = tmp_path / "demo"

    def config(steps: int) -> Any:
        loop = {"max_steps": steps, "batch_size": 2, "checkpoint_every": 1, "export": "last"}
        return tiny_config(root, neck=neck, model=tiny_model(neck), loop=loop)

    fit(build_task(config(2)), config(2), output=tmp_path / "whole", device="cpu")
    fit(build_task(config(1)), config(1), output=tmp_path / "parts", device="cpu")
    fit(build_task(config(2)), config(2), output=tmp_path / "parts", device="cpu", resume=True)
    whole, parts = (
        read_safetensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    task = load_task([tmp_path / "whole"])
    assert isinstance(task, DetectionTask)
    assert task.config.model.roi.global_context
    inputs = task.model.box_predictor.class_logits.in_features
    assert inputs == 2 * (512 if neck == "c4" else 16)
    data = task.val_data()
    assert len(task.predict(data.collate([data.load(0, 0)]))) == 1


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("has", [False, True], ids=["without context", "with context"])
def test_weights_with_and_without_context_do_not_mix(tmp_path: Path, neck: str, has: bool) -> None:
    theirs, ours = (make_config(neck, roi={"global_context": value}) for value in (has, not has))
    names = ("a", "b", "c")
    path = tmp_path / "model.safetensors"
    metadata = {"class_names": json.dumps(names), "config": theirs.model_dump_json()}
    write_safetensors(path, make_network(theirs).state_dict(), metadata)
    with pytest.raises(UserError) as caught:
        load_detector_weights(
            make_network(ours), path, config=ours, class_names=names, category_ids=(1, 2, 3)
        )
    assert str(caught.value) == (
        f"{path}: expected the config's network, got another; it fits with "
        f"model.roi.global_context={json.dumps(has)}"
    )
    same = make_network(theirs, seed=1)
    load_detector_weights(same, path, config=theirs, class_names=names, category_ids=(1, 2, 3))
    assert torch.equal(same.rpn_head.conv.weight, make_network(theirs).rpn_head.conv.weight)
