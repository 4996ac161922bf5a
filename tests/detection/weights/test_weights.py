import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from detection.config import SCHEMAS, DetectionConfig
from detection.weights import (
    from_torchvision_fasterrcnn,
    load_detector_weights,
    to_torchvision_fasterrcnn,
)
from detection.weights.coco_classes import COCO_NAMES
from engine.checkpoint import write_safetensors
from engine.config import parse_config
from engine.errors import UserError
from tests.detection.models.detectors import make_detector

COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
NAMES = ("cat", "dog", "eel", "fox")
LOGITS, DELTAS = "box_predictor.class_logits.", "box_predictor.deltas."
TORCHVISIONS_SETTINGS = (
    "torchvision computes with model.roi.aligned=false; without it detections differ a little"
)
LOGITS_OF_TORCHVISION = "roi_heads.box_predictor.cls_score.bias"


@cache
def torchvision_state() -> dict[str, Tensor]:
    """State of torchvision's COCO detector, 91 outputs."""
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    return dict(model.state_dict())


class Predictor(nn.Module):
    """The part of a detector that knows classes; row r of a layer holds r everywhere."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.box_predictor = nn.Module()
        for name, rows in (("class_logits", num_classes + 1), ("deltas", num_classes * 4)):
            layer = nn.Linear(2, rows)
            nn.init.zeros_(layer.weight)
            with torch.no_grad():
                layer.weight += torch.arange(rows)[:, None]
                layer.bias.copy_(torch.arange(rows))
            setattr(self.box_predictor, name, layer)


def save_ours(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    state = dict(Predictor(len(names)).state_dict())
    write_safetensors(path, state, {"class_names": json.dumps(names)})
    return state


def save_theirs(path: Path, num_outputs: int) -> None:
    torch.save(
        {
            "roi_heads.box_predictor.cls_score.weight": torch.randn(num_outputs, 2),
            "roi_heads.box_predictor.cls_score.bias": torch.arange(float(num_outputs)),
            "roi_heads.box_predictor.bbox_pred.weight": torch.randn(num_outputs * 4, 2),
            "roi_heads.box_predictor.bbox_pred.bias": torch.arange(num_outputs * 4.0),
        },
        path,
    )


def load(model: nn.Module, path: Path, names: Sequence[str], ids: Sequence[int]) -> Any:
    return load_detector_weights(
        model, path, config=DetectionConfig(), class_names=names, category_ids=ids
    )


def biases(model: nn.Module) -> tuple[list[float], list[float]]:
    """Return the logits' biases, and the first of each class's four box biases."""
    state = model.state_dict()
    return state[LOGITS + "bias"].tolist(), state[DELTAS + "bias"][::4].tolist()


def test_torchvisions_names_and_shapes_are_those_of_our_detector() -> None:
    with torch.device("meta"):
        ours = make_detector(
            "fpn", kind="resnet50", num_classes=90, hidden_dim=1024, pyramid_channels=256
        )
    converted = from_torchvision_fasterrcnn(torchvision_state())
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in ours.state_dict().items()
    }


def test_rows_of_classes_move_and_background_becomes_last() -> None:
    theirs = torchvision_state()
    score = theirs["roi_heads.box_predictor.cls_score.weight"]
    boxes = theirs["roi_heads.box_predictor.bbox_pred.bias"]
    ours = from_torchvision_fasterrcnn(theirs, keep_category_ids=[3, 90])
    torch.testing.assert_close(ours[LOGITS + "weight"], score[[3, 90, 0]])
    torch.testing.assert_close(ours[DELTAS + "bias"], torch.cat([boxes[12:16], boxes[360:364]]))


@pytest.mark.parametrize("label", [0, 91, -1])
def test_a_label_that_the_file_does_not_have(label: int) -> None:
    with pytest.raises(UserError, match=f"category ids: expected 1 to 90, got {label}"):
        from_torchvision_fasterrcnn(torchvision_state(), keep_category_ids=[1, label])


def test_there_and_back_loads_strictly_and_loses_only_backgrounds_boxes() -> None:
    theirs = torchvision_state()
    back = to_torchvision_fasterrcnn(from_torchvision_fasterrcnn(theirs))
    with torch.device("meta"):
        model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    model.load_state_dict(back, strict=True, assign=True)
    for name, tensor in theirs.items():
        if ".bbox_pred." in name and name.startswith("roi_heads"):
            torch.testing.assert_close(back[name][4:], tensor[4:])
            assert not back[name][:4].any()
        else:
            torch.testing.assert_close(back[name], tensor)


def test_names_of_torchvisions_published_files_are_older() -> None:
    theirs = torchvision_state()
    old = {
        name.replace("conv.0.0.", "conv.")
        if name.startswith("rpn")
        else name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if name.startswith("backbone.fpn")
        else name: tensor
        for name, tensor in theirs.items()
    }
    assert {"rpn.head.conv.weight", "backbone.fpn.inner_blocks.0.weight"} < old.keys()
    converted = from_torchvision_fasterrcnn(old)
    assert converted.keys() == from_torchvision_fasterrcnn(theirs).keys()


def test_91_outputs_load_into_80_classes(tmp_path: Path) -> None:
    path = tmp_path / "fasterrcnn.pth"
    save_theirs(path, 91)
    model = Predictor(80)
    report = load(model, path, [f"class {i}" for i in COCO_IDS], COCO_IDS)
    logits, deltas = biases(model)
    assert logits == [*COCO_IDS, 0]
    assert deltas == [4 * i for i in COCO_IDS]
    assert report.source == "torchvision"
    assert report.notes[0] == "no class names in a torchvision file: outputs taken by category id"
    assert report.notes[1:] == (TORCHVISIONS_SETTINGS,)


@pytest.mark.parametrize("ids", [(1, 2, 3, 4), (0, 1, 2, 3), (7, 8, 9, 30)], ids=str)
def test_k_plus_1_outputs_are_taken_in_order(tmp_path: Path, ids: tuple[int, ...]) -> None:
    path = tmp_path / "fasterrcnn.pth"
    save_theirs(path, 5)
    model = Predictor(4)
    report = load(model, path, NAMES, ids)
    assert biases(model) == ([1, 2, 3, 4, 0], [4, 8, 12, 16])
    note = "no class names in a torchvision file: outputs taken in order"
    assert report.notes == (note, TORCHVISIONS_SETTINGS)


def test_91_outputs_are_cocos_by_name(tmp_path: Path) -> None:
    path = tmp_path / "fasterrcnn.pth"
    save_theirs(path, 91)
    model = Predictor(4)
    report = load(model, path, NAMES, (1, 2, 3, 4))
    logits, deltas = biases(model)
    assert [logits[i] for i in (0, 1, 4)] == [17, 18, 0]  # COCO's ids of cat and dog; background
    assert [deltas[i] for i in (0, 1)] == [4 * 17, 4 * 18]
    assert report.notes[-1].startswith(
        "classes: 2 carried over (cat, dog), 2 new at random (eel, fox), 78 of the file dropped ("
    )


def test_own_category_ids_up_to_90_are_not_cocos(tmp_path: Path) -> None:
    path = tmp_path / "fasterrcnn.pth"
    save_theirs(path, 91)
    model = Predictor(2)
    report = load(model, path, ("dog", "hot dog"), (1, 90))
    assert biases(model)[0] == [18, 58, 0]  # by name; by id they were person and toothbrush
    assert report.notes[-1].startswith("classes: 2 carried over (dog, hot dog), 0 new at random")


def test_a_category_id_of_0_is_no_output_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "fasterrcnn.pth"
    save_theirs(path, 4)
    report = load(Predictor(4), path, NAMES, (0, 1, 2, 3))
    assert report.notes[-1].startswith("classes: the file has 3 without names, all dropped; 4 new")


def test_coco_names_are_those_of_coco(data_dir: Path) -> None:
    (path, *_) = sorted((data_dir / "coco128" / "annotations").glob("*.json"))
    categories = json.loads(path.read_text(encoding="utf-8"))["categories"]
    assert tuple(each["name"] for each in categories) == COCO_NAMES
    assert len(COCO_NAMES) == len(COCO_IDS) == 80


def test_other_numbers_of_outputs_are_all_new(tmp_path: Path) -> None:
    path = tmp_path / "fasterrcnn.pth"
    save_theirs(path, 8)
    model = Predictor(4)
    report = load(model, path, NAMES, (1, 2, 3, 4))
    assert biases(model)[0][4] == 0  # background's
    assert biases(model)[1] == biases(Predictor(4))[1]
    assert report.notes[-1] == (
        "classes: the file has 7 without names, all dropped; 4 new at random (cat, dog, eel, fox)"
    )


def test_our_file_loads_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = save_ours(path, NAMES)
    model = Predictor(4)
    nn.init.zeros_(model.get_parameter(LOGITS + "bias"))
    report = load(model, path, NAMES, (1, 2, 3, 4))
    torch.testing.assert_close(dict(model.state_dict()), state)
    assert (report.source, report.notes, report.unexpected) == ("resdet", (), ())


def test_a_run_with_other_settings_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    config = parse_config(
        {}, ["model.rpn.round_anchors=false", "model.roi.pool=roi_pool"], schemas=SCHEMAS, source=""
    )
    metadata = {"class_names": json.dumps(NAMES), "config": config.model_dump_json()}
    write_safetensors(path, dict(Predictor(4).state_dict()), metadata)
    assert load(Predictor(4), path, NAMES, (1, 2, 3, 4)).notes == (
        "the file's run has model.rpn.round_anchors=false model.roi.pool=roi_pool, unlike this one",
    )


def test_classes_in_another_order_are_reordered_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_ours(path, ("fox", "dog", "cat", "eel"))
    model = Predictor(4)
    report = load(model, path, NAMES, (1, 2, 3, 4))
    assert biases(model) == ([2, 1, 3, 0, 4], [8, 4, 12, 0])
    assert report.notes == ("the file's classes are in another order: rows reordered by name",)


@pytest.mark.parametrize(
    ("in_file", "note"),
    [
        (
            ("cat", "dog", "eel", "foxx"),
            "3 carried over (cat, dog, eel), 1 new at random (fox), 1 of the file dropped (foxx)",
        ),
        (
            ("fox", "cat"),
            "2 carried over (cat, fox), 2 new at random (dog, eel), 0 of the file dropped",
        ),
        (
            ("gnu", *NAMES),
            "4 carried over (cat, dog, eel, fox), 0 new at random, 1 of the file dropped (gnu)",
        ),
        (
            ("gnu",),
            "0 carried over, 4 new at random (cat, dog, eel, fox), 1 of the file dropped (gnu)",
        ),
        (
            ("C-at", "dog"),
            "1 carried over (dog), 3 new at random (cat, eel, fox), 1 of the file dropped (C-at); "
            "'cat' is new because the file has 'C-at'",
        ),
    ],
    ids=["misspelt", "fewer", "more", "others", "another spelling"],
)
def test_other_classes_start_at_random(tmp_path: Path, in_file: Sequence[str], note: str) -> None:
    path = tmp_path / "model.safetensors"
    theirs = save_ours(path, list(in_file))
    model = Predictor(4)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load(model, path, NAMES, (1, 2, 3, 4))
    assert report.notes == (f"classes: {note}",)
    num_new = len(set(NAMES) - set(in_file))
    for kind in ("weight", "bias"):
        logits, deltas = (model.state_dict()[f"{layer}{kind}"] for layer in (LOGITS, DELTAS))
        assert torch.equal(logits[-1], theirs[LOGITS + kind][-1])
        for row, name in enumerate(NAMES):
            boxes = slice(4 * row, 4 * row + 4)
            if name in in_file:
                old = list(in_file).index(name)
                assert torch.equal(logits[row], theirs[LOGITS + kind][old])
                assert torch.equal(deltas[boxes], theirs[DELTAS + kind][4 * old : 4 * old + 4])
                continue
            assert torch.equal(deltas[boxes], own[DELTAS + kind][boxes])
            expected = own[LOGITS + kind][row] + theirs[LOGITS + kind][-1]
            if kind == "bias":
                expected = expected - math.log(1000 * num_new)
            torch.testing.assert_close(logits[row], expected)


def test_a_file_without_class_names(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, Predictor(4).state_dict(), {})
    with pytest.raises(UserError, match="expected class_names in the metadata"):
        load(Predictor(4), path, NAMES, (1, 2, 3, 4))


def test_another_network_of_torchvision_is_named(tmp_path: Path) -> None:
    path = tmp_path / "maskrcnn.pth"
    save_theirs(path, 5)
    state = torch.load(path, weights_only=True) | {"roi_heads.mask_head.w": torch.ones(1)}
    torch.save(state, path)
    with pytest.raises(UserError, match=r"maskrcnn.pth: .*unexpected: roi_heads.mask_head.w$"):
        load(Predictor(4), path, NAMES, (1, 2, 3, 4))


RESNET = {"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(4, 4, 1, 1)}
CLS_SCORE = {LOGITS_OF_TORCHVISION: torch.ones(5)}


def named(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("state", "kind", "has_backbone"),
    [
        (
            {"backbone.bottom_up.stem.conv1.weight": torch.ones(64, 3, 7, 7), **CLS_SCORE},
            "a detectron2 detector without the RPN or the box head",
            True,
        ),
        ({"proposal_generator.w": torch.ones(1), **CLS_SCORE}, "a detectron2 detector", False),
        (
            {"bbox_head.fc_cls.bias": torch.ones(5), **named("backbone.", RESNET)},
            "an mmdetection detector",
            True,
        ),
        ({"class_embed.bias": torch.ones(5)}, "a DETR", False),
        (
            {"head.classification_head.w": torch.ones(5), **named("backbone.body.", RESNET)},
            "torchvision's RetinaNet",
            True,
        ),
        ({**RESNET, "fc.bias": torch.ones(10)}, "a classifier", True),
        ({"0.conv.weight": torch.ones(1)}, r"an ultralytics \(YOLO\) model", False),
        ({}, "a file without tensors", False),
    ],
    ids=[
        "detectron2",
        "headless",
        "mmdetection",
        "detr",
        "retinanet",
        "fc",
        "yolo",
        "empty",
    ],
)
@pytest.mark.parametrize("wrap", [dict, lambda s: {"model": {"state_dict": named("module.", s)}}])
def test_a_file_of_another_kind_is_named(
    tmp_path: Path, state: dict[str, Tensor], kind: str, has_backbone: bool, wrap: Any
) -> None:
    path = tmp_path / "other.pth"
    torch.save(wrap(state), path)
    with pytest.raises(
        UserError, match=f"other.pth: expected a detector of ours.*, got {kind}"
    ) as e:
        load(Predictor(4), path, NAMES, (1, 2, 3, 4))
    assert ("model.backbone.weights=" in str(e.value)) == has_backbone
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("num_rows", [16, 4, 21])
def test_boxes_that_are_not_four_an_output(tmp_path: Path, num_rows: int) -> None:
    path = tmp_path / "fasterrcnn.pth"
    save_theirs(path, 5)
    state = torch.load(path, weights_only=True)
    for name in ("weight", "bias"):
        key = f"roi_heads.box_predictor.bbox_pred.{name}"
        state[key] = torch.ones(num_rows, *state[key].shape[1:])
    torch.save(state, path)
    with pytest.raises(UserError, match=rf"bbox_pred.weight: expected 20 rows, got \({num_rows}"):
        load(Predictor(4), path, NAMES, (1, 2, 3, 4))
    torch.save({LOGITS_OF_TORCHVISION: torch.tensor(1.0)}, path)
    with pytest.raises(UserError, match=r"cls_score.bias: expected a number for each output"):
        load(Predictor(4), path, NAMES, (1, 2, 3, 4))


def test_rows_of_our_file_that_do_not_fit_its_names(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = dict(Predictor(2).state_dict())
    write_safetensors(path, state, {"class_names": json.dumps(NAMES[::-1])})
    with pytest.raises(UserError, match=r"class_logits.\w+: expected 5 rows, got \(3"):
        load(Predictor(4), path, NAMES, (1, 2, 3, 4))
