"""Files of VGG-16: ours and torchvision's, into classifiers and detectors; what is no VGG-16."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from backbones import Backbone, build_resnet, vgg16
from backbones.weights import WeightsReport, load_backbone_weights, to_torchvision
from engine.checkpoint import write_safetensors
from engine.errors import UserError
from tests.backbones.test_vgg import narrow_torchvision, tiny

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def load(model: Backbone, path: Path, **options: Any) -> WeightsReport:
    return load_backbone_weights(model, path, **({"pixel_mean": MEAN, "pixel_std": STD} | options))


def assert_same_weights(got: nn.Module, want: nn.Module) -> None:
    wanted = want.state_dict()
    for name, tensor in got.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)


@pytest.mark.extended
def test_torchvisions_file_of_full_size(tmp_path: Path) -> None:
    path = tmp_path / "vgg16.pth"
    theirs = torchvision.models.vgg16(init_weights=False).eval()
    torch.save(theirs.state_dict(), path)
    ours = vgg16().eval()
    report = load(ours, path)
    assert (report.source, report.unexpected) == ("torchvision", ())
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    theirs.load_state_dict(to_torchvision(ours), strict=True)
    saved = torch.load(path, mmap=True)
    for name, tensor in theirs.state_dict().items():
        assert tensor.equal(saved[name]), name


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_torchvisions_file(tmp_path: Path, prefix: str, wrap: bool) -> None:
    theirs = narrow_torchvision(5)
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": state} if wrap else state, tmp_path / "vgg16.pth")
    ours = tiny()
    assert load(ours, tmp_path / "vgg16.pth").source == "torchvision"
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_a_backbone_reports_the_unused_classifier(tmp_path: Path) -> None:
    theirs = narrow_torchvision(5)
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    ours = tiny(None)
    assert load(ours, tmp_path / "vgg16.pth").unexpected == (
        "classifier.6.weight",
        "classifier.6.bias",
    )
    assert ours.fc7.weight.equal(theirs.get_parameter("classifier.3.weight"))


def test_new_classes_start_from_random_weights(tmp_path: Path) -> None:
    theirs = narrow_torchvision(7)
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    ours = tiny(3)
    fc = {name: tensor.clone() for name, tensor in ours.fc.state_dict().items()}
    report = load(ours, tmp_path / "vgg16.pth", new_classes=True)
    assert report.notes == (
        "fc has 7 classes in the file: starts from random weights, for 3 classes",
    )
    torch.testing.assert_close(dict(ours.fc.state_dict()), fc, rtol=0, atol=0)
    assert ours.fc6.weight.equal(theirs.get_parameter("classifier.0.weight"))


@pytest.mark.parametrize("prefix", ["", "backbone."], ids=["backbone", "run"])
def test_our_safetensors(tmp_path: Path, prefix: str) -> None:
    source, path = tiny(None), tmp_path / "model.safetensors"
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    more = {"rpn_head.conv.weight": torch.zeros(1)} if prefix else {}
    metadata = {"class_names": "[]", "pixel_mean": json.dumps(MEAN), "pixel_std": json.dumps(STD)}
    write_safetensors(path, state | more, metadata)
    model = tiny(None)
    report = load(model, path)
    assert (report.source, report.unexpected) == ("resdet", tuple(more))
    assert_same_weights(model, source)


def test_bgr_pixels_without_std(tmp_path: Path) -> None:
    # jcjohnson's conversion of the original Caffe network has torchvision's names and BGR pixels
    theirs = tiny(None)
    theirs.get_parameter("conv1_1.weight").data /= 50
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    ours = tiny(None)
    (note,) = load(ours, tmp_path / "vgg16.pth", pixels="bgr").notes
    assert note.startswith("conv1 expects BGR pixels with std [1, 1, 1] (RGB): converted")
    x = torch.randn(1, 3, 64, 64)
    bgr = (x * torch.tensor(STD).view(3, 1, 1)).flip(1)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(bgr), rtol=1e-3, atol=1e-4)


def meta_state(builder: Any) -> dict[str, Tensor]:
    """Return a state with the tensor names of a network, each of one zero."""
    with torch.device("meta"):
        names = list(builder(weights=None).state_dict())
    return {name: torch.zeros(1) for name in names}


MODELS = torchvision.models
BAD = {
    "resnet": (
        lambda: build_resnet("resnet18", width_multiplier=0.1).state_dict(),
        r"expected VGG-16 (conv1_1.weight), got a residual network (conv1.weight)",
    ),
    "other": (
        lambda: {"encoder.w": torch.ones(1)},
        "expected VGG-16 (conv1_1.weight), got encoder.w",
    ),
    "vgg19": (
        lambda: meta_state(MODELS.vgg19),
        "weights of another network than the model; missing: conv4_1.weight, conv4_1.bias, "
        "conv5_1.weight, conv5_1.bias, conv5_2.weight and 1 more; unexpected: features.16.weight",
    ),
    "batch norm": (
        lambda: meta_state(MODELS.vgg16_bn),
        "weights of another network than the model; missing: ",
    ),
    "alexnet": (
        lambda: meta_state(MODELS.alexnet),
        "expected VGG-16 (conv1_1.weight), got a classifier: features.0.weight, ",
    ),
    "width": (
        lambda: vgg16(None, width_multiplier=0.1).state_dict(),
        "conv2_1.weight: expected shape (8, 8, 3, 3), got (13, 8, 3, 3)",
    ),
    "no fc6": (
        lambda: {n: t for n, t in tiny(None).state_dict().items() if not n.startswith("fc6")},
        "missing: fc6.weight, fc6.bias",
    ),
}


@pytest.mark.parametrize(("state", "message"), BAD.values(), ids=BAD)
def test_another_network_is_named_in_one_line(tmp_path: Path, state: Any, message: str) -> None:
    path, model = tmp_path / "net.pth", tiny(None)
    torch.save(state(), path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load(model, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torchvision"])
def test_a_vgg_for_a_residual_network_is_named_in_one_line(tmp_path: Path, ours: bool) -> None:
    path = tmp_path / "net.pth"
    network: nn.Module = tiny() if ours else narrow_torchvision(5)
    torch.save(network.state_dict(), path)
    first = "conv1_1.weight" if ours else "features.0.weight"
    message = f"{path}: expected a residual network (conv1.weight), got VGG-16 ({first})"
    with pytest.raises(UserError, match=rf"^{re.escape(message)}$"):
        load(build_resnet("resnet18"), path)


def test_a_residual_network_of_another_width(tmp_path: Path) -> None:
    torch.save(build_resnet("resnet18").state_dict(), tmp_path / "net.pth")
    message = r"conv1.weight: expected shape \(16, 3, 7, 7\), got \(64, 3, 7, 7\)$"
    with pytest.raises(UserError, match=message):
        load(build_resnet("resnet18", width_multiplier=0.25), tmp_path / "net.pth")
