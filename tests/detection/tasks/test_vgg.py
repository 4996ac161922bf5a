"""A detector on VGG-16: training, prediction, files, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backbones.vgg import VGG16, vgg16
from backbones.weights import to_torchvision
from detection.commands.tasks import build_task, check_weights
from detection.config import SCHEMAS, DetectionConfig
from detection.models import C4BoxHead
from detection.models.build import build_detector
from detection.ops.roi_pool import pool_rois
from detection.predict import load_detector
from detection.tasks.detection import DetectionTask
from detection.tasks.start_checks import check_detector
from engine.checkpoint import read_safetensors
from engine.config import parse_config
from engine.distributed import World
from engine.errors import UserError
from engine.trainer import fit
from tests.detection.tasks.test_golden import fixed_batch
from tests.detection.tasks.tiny import make_step, tiny_config

BACKBONE = {"kind": "vgg16", "width_multiplier": 1 / 16, "frozen_stages": 0}
GOLDEN = {
    "roi_pool": {
        "rpn_objectness": 0.692468,
        "rpn_box": 0.0156970,
        "roi_class": 1.923858,
        "roi_box": 0.634066,
    },
    "roi_align": {
        "rpn_objectness": 0.692468,
        "rpn_box": 0.0156970,
        "roi_class": 1.901473,
        "roi_box": 0.632050,
    },
}


def config_of(
    root: Path, *, pool: str = "roi_align", context: bool = False, **backbone: Any
) -> DetectionConfig:
    roi = {"num_samples": 16, "score_thresh": 0.01, "pool": pool, "global_context": context}
    model = tiny_config(root, neck="c4").model.model_dump()
    model |= {"backbone": BACKBONE | backbone, "roi": roi}
    return tiny_config(root, neck="c4", model=model, loop={"max_steps": 2, "batch_size": 2})


def task_of(config: DetectionConfig) -> DetectionTask:
    task = build_task(config)
    assert isinstance(task, DetectionTask)
    return task


@pytest.mark.parametrize("pool", GOLDEN)
def test_losses_are_the_recorded_ones(tmp_path: Path, pool: str) -> None:
    task = task_of(config_of(tmp_path, pool=pool)).eval()  # no dropout
    found = {name: value.item() for name, value in task.losses(fixed_batch()).items()}
    assert found == pytest.approx(GOLDEN[pool], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("pool", "context"), [("roi_pool", False), ("roi_align", False), ("roi_pool", True)]
)
def test_two_training_steps_move_all_but_the_frozen_layers(
    tmp_path: Path, pool: str, context: bool
) -> None:
    config = config_of(tmp_path, pool=pool, context=context, frozen_stages=2)
    task, batch = task_of(config), fixed_batch()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    step = make_step(task, batch, World(0, 1, torch.device("cpu")))
    for number in range(2):
        step(number)
        assert all(value.isfinite() for value in task.losses(batch).values())
    kept = {name for name, tensor in task.model.state_dict().items() if tensor.equal(before[name])}
    frozen = ("backbone.conv1_", "backbone.conv2_")
    assert kept == {name for name in before if name.startswith(frozen)}


@pytest.mark.parametrize("pool", ["roi_pool", "roi_align"])
def test_regions_are_fc7_of_7x7_cells_of_conv5_3(tmp_path: Path, pool: Any) -> None:
    model = build_detector(config_of(tmp_path, pool=pool), 3).eval()
    backbone, images = model.backbone, fixed_batch().images
    assert isinstance(backbone, VGG16)
    assert isinstance(model.box_head, C4BoxHead)
    boxes = torch.tensor([[[8.0, 10.0, 60.0, 70.0], [0.0, 0.0, 127.0, 95.0]]]).expand(2, -1, -1)
    with torch.no_grad():
        features = model.features(images)
        assert {name: tuple(each.shape) for name, each in features.items()} == {"c4": (2, 32, 6, 8)}
        pooled = pool_rois([features["c4"]], [16], boxes, kind=pool, resolution=7)
        hidden = pooled.flatten(1)
        for layer in (backbone.fc6, backbone.fc7):
            hidden = torch.relu(layer(hidden))
        regions = model.region_features(features, boxes)
        assert regions.shape == (2, 2, 256, 1, 1)
        torch.testing.assert_close(regions.flatten(0, 1).flatten(1), hidden)
        logits, deltas = model.box_outputs(regions)
        expected_logits, expected_deltas = model.box_predictor(hidden)
    torch.testing.assert_close(logits.flatten(0, 1), expected_logits)
    torch.testing.assert_close(deltas.flatten(0, 1), expected_deltas)


def test_a_run_is_saved_loaded_and_predicts(tmp_path: Path) -> None:
    config = config_of(tmp_path / "demo", pool="roi_pool")
    task = task_of(config)
    fit(task, config, output=tmp_path / "run")
    data: Any = task.val_data()
    batch = data.collate([data.load(0, seed=0)])
    (expected,) = task.eval().predict(batch)
    assert len(expected) > 0
    document = json.loads(Path(config.data.val.annotations).read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    image = Path(config.data.val.images) / names[batch.images.image_ids[0].item()]
    (found,) = load_detector(tmp_path / "run", device="cpu").predict([image])
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-4)
    assert found.labels.equal(expected.labels)

    # and with the paper's improvements
    for keys in (
        ["refine_boxes=true"],
        ["scales=[64,96,128]"],
        ["scales=[64,96]", "merge=union", "mirror=true"],
    ):
        overrides = [f"evaluation.{key}" for key in keys]
        detector = load_detector(tmp_path / "run", device="cpu", overrides=overrides)
        (improved,) = detector.predict([image])
        assert len(improved) > 0
        assert improved.boxes.isfinite().all()
        assert not improved.boxes.equal(found.boxes)
    weights, _ = read_safetensors(tmp_path / "run" / "model.safetensors")
    for name, tensor in task.model.state_dict().items():
        assert tensor.equal(weights[name]), name

    # its backbone, and the whole detector, start another run
    path = str(tmp_path / "run" / "model.safetensors")
    again = task_of(config_of(tmp_path / "demo", weights=path, frozen_stages=2))
    for name, tensor in again.model.backbone.state_dict().items():
        assert tensor.equal(weights[f"backbone.{name}"]), name
    model = config.model.model_copy(update={"weights": path})
    whole = task_of(config.model_copy(update={"model": model}))
    for name, tensor in whole.model.state_dict().items():
        assert tensor.equal(weights[name]), name


def make_config(*overrides: str) -> DetectionConfig:
    config = parse_config({}, overrides, schemas=SCHEMAS, source="test")
    assert isinstance(config, DetectionConfig)
    return config


def state_of(config: DetectionConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(build_detector(config, 3).state_dict())


REFUSED = {
    "neck": (
        ["model.neck.kind=fpn"],
        "model: neck.kind: expected c4 with backbone.kind=vgg16 (it has one feature map, conv5_3), "
        "got fpn",
    ),
    "resolution": (
        ["model.roi.resolution=14"],
        "model: roi.resolution: expected 7 with backbone.kind=vgg16 (fc6 reads 7x7 cells), got 14",
    ),
    "task": (
        ["task=segmentation"],
        "model.backbone.kind: expected a residual or plain network with task=segmentation",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_vgg16_cannot_do_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_config("model.backbone.kind=vgg16", *overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_regions_have_7x7_cells_by_default() -> None:
    with torch.device("meta"):
        sides = [
            build_detector(make_config(*overrides), 3).roi_resolution
            for overrides in (
                ["model.backbone.kind=vgg16"],
                ["model.backbone.kind=vgg16", "model.roi.resolution=7"],
                ["model.backbone.kind=plain18"],
            )
        ]
    assert sides == [7, 7, 14]


def test_only_frozen_stages_need_weights_because_there_is_no_norm() -> None:
    check_weights(make_config("model.backbone.kind=vgg16", "model.backbone.frozen_stages=0"))
    message = "expected pretrained weights with frozen_stages=2, got none"
    with pytest.raises(UserError, match=message):
        check_weights(make_config("model.backbone.kind=vgg16"))


def test_a_single_cell_is_no_matter_without_batch_norm() -> None:
    small = ["data.augment.short_sides=[16]", "data.size_divisor=16", "loop.batch_size=1"]
    norm = ["model.backbone.norm=batch", "model.backbone.frozen_stages=0"]
    check_detector(make_config("model.backbone.kind=vgg16", *norm, *small))
    with pytest.raises(UserError, match="expected more than one value per channel"):
        check_detector(make_config("model.backbone.kind=plain18", *norm, *small))


@pytest.mark.parametrize("kind", ["plain18", "plain34"])
def test_plain_networks_are_backbones(kind: str) -> None:
    config = make_config(f"model.backbone.kind={kind}", "model.backbone.width_multiplier=0.125")
    names = state_of(config)
    assert not [name for name in names if ".downsample." in name]
    assert names["backbone.layer4.0.conv1.weight"].shape == (64, 32, 3, 3)


def test_weights_of_a_residual_network_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(UserError, match=r"expected VGG-16 \(conv1_1.weight\), got a residual"):
        task_of(config_of(tmp_path / "demo", weights=str(path)))


def test_torchvisions_names_load_into_a_detector(tmp_path: Path) -> None:
    source = vgg16(10, width_multiplier=1 / 16)
    torch.save(to_torchvision(source), tmp_path / "vgg16.pth")
    task = task_of(config_of(tmp_path / "demo", weights=str(tmp_path / "vgg16.pth")))
    for name, tensor in task.model.backbone.state_dict().items():
        assert tensor.equal(source.state_dict()[name]), name
    assert any("not used: classifier.6.weight" in line for line in task.notes())
