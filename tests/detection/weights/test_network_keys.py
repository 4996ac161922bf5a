from functools import cache

import pytest
import torch
from torch import Tensor

from detection.config import SCHEMAS, DetectionConfig
from detection.models.build import build_detector
from detection.weights.network_keys import check_keys, differing, network_keys
from engine.config import parse_config
from engine.errors import UserError

MASKS = ("task=segmentation",)
FPN = ("model.neck.kind=fpn", "model.backbone.kind=resnet18")
VGG = ("model.neck.kind=c4", "model.backbone.kind=vgg16")
C4 = ("model.neck.kind=c4", "model.backbone.kind=resnet18")


def make_config(*overrides: str) -> DetectionConfig:
    config = parse_config({}, overrides, schemas=SCHEMAS, source="test")
    assert isinstance(config, DetectionConfig)
    return config


@cache
def state_of(*overrides: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(build_detector(make_config(*overrides), 3).state_dict())


@pytest.mark.parametrize(
    ("run", "file"),
    [
        (FPN, ("model.backbone.kind=resnet34",)),
        (FPN, ("model.backbone.kind=resnet50",)),
        (FPN, ("model.backbone.norm=group",)),
        ((*FPN, "model.backbone.norm=group"), ("model.backbone.norm=frozen",)),
        (C4, ("model.neck.kind=fpn",)),
        (FPN, ("model.neck.channels=32", "model.roi.hidden_dim=64")),
        (FPN, ("model.neck.norm=batch",)),
        (FPN, ("model.neck.norm=group",)),
        (FPN, ("model.roi.resolution=5",)),
        (FPN, ("model.rpn.num_convs=3",)),
        (C4, ("model.rpn.num_convs=2",)),
        (FPN, ("model.roi.num_convs=2",)),
        ((*FPN, "model.roi.num_convs=2"), ("model.roi.num_convs=0",)),
        (FPN, ("model.roi.num_fcs=1",)),
        (FPN, ("model.roi.num_convs=2", "model.roi.norm=batch", "model.roi.conv_dim=64")),
        ((*FPN, "model.roi.num_convs=2"), ("model.roi.norm=group",)),
        ((*FPN, "model.roi.num_convs=2"), ("model.roi.resolution=5", "model.roi.conv_dim=64")),
        ((*FPN, *MASKS), ("model.mask.norm=batch",)),
        ((*FPN, *MASKS), ("model.mask.norm=group", "model.mask.num_convs=2")),
        (FPN, ("model.roi.global_context=true", "model.roi.num_fcs=3", "model.roi.num_convs=1")),
        (FPN, ("model.roi.stages=3",)),
        (FPN, ("task=segmentation",)),
        ((*FPN, *MASKS), ("task=detection",)),
        ((*FPN, *MASKS), ("model.mask.hidden_dim=512", "model.mask.num_convs=8")),
        ((*C4, *MASKS), ("model.mask.hidden_dim=512",)),
        (FPN, ("model.backbone.kind=plain18",)),
        (FPN, ("model.backbone.kind=plain34",)),
        (FPN, ("model.backbone.width_multiplier=0.25",)),
        (C4, ("model.backbone.kind=vgg16",)),
        (VGG, ("model.backbone.kind=resnet18",)),
        (VGG, ("model.backbone.width_multiplier=0.25",)),
        (FPN, ("model.roi.global_context=true",)),
        (C4, ("model.roi.global_context=true",)),
        (("model.backbone.kind=resnet50",), ("model.roi.global_context=true",)),
        (VGG, ("model.roi.global_context=true",)),
    ],
    ids=lambda keys: ",".join(key.rpartition(".")[2] for key in keys),
)
def test_what_differs_is_named_by_key(run: tuple[str, ...], file: tuple[str, ...]) -> None:
    keys = [key.partition("=")[0] for key in file]
    theirs = (*(each for each in run if each.partition("=")[0] not in keys), *file)
    state = state_of(*theirs)
    assert sorted(differing(network_keys(state), make_config(*run))) == sorted(file)
    assert differing(network_keys(state), make_config(*theirs)) == []
    with pytest.raises(UserError) as caught:
        check_keys(state, make_config(*run), {}, path="a.pth")
    assert str(caught.value).startswith("a.pth: expected the config's network, got another;")
    check_keys(state, make_config(*theirs), {}, path="a.pth")


@pytest.mark.parametrize(
    ("run", "file", "message"),
    [
        (
            ("model.rpn.anchor_sizes=[16,32]",),
            (),
            r"model.rpn.anchor_sizes=\[32,64,128,256,512\] model.rpn.anchor_ratios=\[0.5,1,2\]$",
        ),
        (
            (),
            ("model.rpn.anchor_sizes=[16,32]",),
            r"model.rpn.anchor_sizes and anchor_ratios that make 6 anchors on a cell \(not 15\)$",
        ),
        (
            ("model.neck.kind=fpn",),
            ("model.neck.kind=fpn", "model.rpn.anchor_ratios=[1]"),
            r"model.rpn.anchor_ratios that make 1 anchors on a cell \(not 3\)$",
        ),
    ],
    ids=["default", "c4", "fpn"],
)
def test_anchors(run: tuple[str, ...], file: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_keys(state_of(*file), make_config(*run), {}, path="a.pth")


@pytest.mark.parametrize(
    "keys",
    [
        ("model.rpn.anchor_sizes=[16,32]", "model.rpn.anchor_ratios=[1,2]"),
        ("model.neck.kind=fpn", "model.rpn.anchor_ratios=[0.5,1]"),
    ],
    ids=["c4", "fpn"],
)
def test_anchors_of_our_file_are_those_of_its_run(keys: tuple[str, ...]) -> None:
    theirs, state = make_config(*keys), state_of(*keys)
    run = [key for key in keys if key.startswith("model.neck")]
    with pytest.raises(UserError) as caught:
        check_keys(state, make_config(*run), {}, path="a.pth", trained_with=theirs)
    overrides = str(caught.value).partition("it fits with ")[2].split(" ")
    check_keys(state, make_config(*run, *overrides), {}, path="a.pth", trained_with=theirs)


@pytest.mark.parametrize("kind", ["resnet50", "vgg16"])
def test_a_width_that_is_rounded_fits_itself(kind: str) -> None:
    keys = (f"model.backbone.kind={kind}", "model.backbone.width_multiplier=0.3")
    assert differing(network_keys(state_of(*keys)), make_config(*keys)) == []
    assert differing(network_keys(state_of(*keys)), make_config(keys[0])) == [
        "model.backbone.width_multiplier=0.30078125"  # 154 of 512 channels
    ]


def test_a_part_of_a_detector_has_no_keys() -> None:
    assert network_keys({}) == {}
    assert network_keys({"box_predictor.class_logits.bias": torch.zeros(3)}) == {}
    odd = {"backbone.conv1.weight": torch.tensor(1.0), "rpn_head.objectness.weight": torch.ones(1)}
    assert network_keys({**odd, "fpn.inner.0.weight": torch.tensor(1.0)})["task"] == "detection"
