import hashlib
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backbones import ResNet, build_resnet, cifar_resnet
from backbones.resnet import BasicBlock
from backbones.weights import load_backbone_weights, read_state, sha256_of, to_torchvision
from engine.checkpoint import write_safetensors
from engine.errors import UserError


def tiny(**options: Any) -> ResNet:
    """A ResNet-18 in names, not in width."""
    options = {"num_classes": 3} | options
    return ResNet(BasicBlock, (2, 2, 2, 2), widths=(4, 4, 4, 4), **options)


def trained() -> ResNet:
    """A tiny net in which every tensor differs from every other's."""
    model = tiny()
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.uniform_(0.5, 1.5)
    return model


def assert_same_weights(got: ResNet, want: ResNet) -> None:
    for name, tensor in got.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, want.state_dict()[name])


def test_our_safetensors(tmp_path: Path) -> None:
    path, source = tmp_path / "model.safetensors", trained()
    write_safetensors(path, source.state_dict(), {"class_names": "[]"})
    model = tiny()
    report = load_backbone_weights(model, path)
    assert_same_weights(model, source)
    assert (report.path, report.source, report.unexpected) == (str(path), "resdet", ())
    assert report.sha256 == sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("wrap", ["", "state_dict", "model"], ids=["bare", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "model."])
def test_torch_file_with_prefixes(tmp_path: Path, prefix: str, wrap: str) -> None:
    path, source = tmp_path / "net.pth", trained()
    state = {prefix + name: tensor for name, tensor in to_torchvision(source).items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    model = tiny()
    report = load_backbone_weights(model, str(path))
    assert_same_weights(model, source)
    assert (report.source, report.unexpected) == ("torchvision", ())


def test_file_without_counters_and_of_half_precision(tmp_path: Path) -> None:
    source = trained().half()
    state = {n: t for n, t in source.state_dict().items() if "num_batches" not in n}
    torch.save(state, tmp_path / "net.pth")
    model = tiny()
    load_backbone_weights(model, tmp_path / "net.pth")
    assert_same_weights(model, source.float())


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_headless_backbone_names_the_classifier_that_it_leaves(tmp_path: Path, norm: str) -> None:
    source = trained()
    torch.save(to_torchvision(source), tmp_path / "net.pth")
    model = tiny(num_classes=None, norm=norm)
    report = load_backbone_weights(model, tmp_path / "net.pth")
    assert_same_weights(model, source)
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert report.lines() == [
        f"weights from {tmp_path / 'net.pth'} (torchvision, sha256 {report.sha256[:12]})",
        "left out: fc.weight, fc.bias",
    ]


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.body."], ids=["ours", "torchvision"])
def test_backbone_out_of_a_detector(tmp_path: Path, prefix: str) -> None:
    source = trained()
    state = {prefix + n: t for n, t in source.state_dict().items() if not n.startswith("fc")}
    torch.save(state | {"rpn_head.conv.weight": torch.zeros(1)}, tmp_path / "detector.pth")
    model = tiny(num_classes=None)
    report = load_backbone_weights(model, tmp_path / "detector.pth")
    assert_same_weights(model, source)
    assert report.unexpected == ("rpn_head.conv.weight",)


def without(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(start)}


BAD_STATES = {
    "missing": (
        lambda s: without(s, "layer1.0.conv"),
        r"missing: layer1.0.conv1.weight, layer1.0.conv2.weight$",
    ),
    "many-missing": (
        lambda s: without(s, "layer4"),
        r"missing: layer4.0.conv1.weight, (\S+, ){3}\S+ and 20 more$",
    ),
    "missing-fc": (lambda s: without(s, "fc"), "missing: fc.weight, fc.bias$"),
    "left-over": (lambda s: s | {"layer5.w": torch.ones(1)}, "left over: layer5.w$"),
    "both": (
        lambda s: without(s, "fc.bias") | {"fc.extra": torch.ones(1)},
        "missing: fc.bias; left over: fc.extra$",
    ),
    "shape": (
        lambda s: s | {"fc.weight": torch.ones(5, 4)},
        r"fc.weight: expected shape \(3, 4\), got \(5, 4\)$",
    ),
    "foreign": (
        lambda _: {"encoder.w": torch.ones(1)},
        r"expected a residual network \(conv1.weight\), got encoder.w$",
    ),
    "empty": (lambda _: {}, r"expected a residual network \(conv1.weight\), got none$"),
    "not-tensors": (lambda _: {"epoch": 1}, "expected names and tensors"),
}


@pytest.mark.parametrize(("change", "message"), BAD_STATES.values(), ids=list(BAD_STATES))
def test_bad_file_is_one_line_and_changes_nothing(
    tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "net.pth"
    torch.save(change(to_torchvision(trained())), path)
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_backbone_weights(model, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(dict(model.state_dict()), before)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "text", "absent"])
def test_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(trained().state_dict(), path)
    else:
        write_safetensors(path, trained().state_dict(), {})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    else:
        path.unlink()
    with pytest.raises(UserError, match=str(path)):
        read_state(path)


def test_group_norm_net_says_that_the_file_is_of_a_batch_norm_net(tmp_path: Path) -> None:
    torch.save(to_torchvision(trained()), tmp_path / "net.pth")
    message = r"batch norm, but the model has group norm .*bn1.running_mean, .* and 35 more"
    with pytest.raises(UserError, match=message):
        load_backbone_weights(tiny(norm="group"), tmp_path / "net.pth")


def test_frozen_net_gets_its_counters_for_torchvision() -> None:
    model = build_resnet("resnet18", num_classes=3, norm="frozen")
    batch = build_resnet("resnet18", num_classes=3, norm="batch")
    batch.load_state_dict(to_torchvision(model), strict=True)
    assert to_torchvision(model).keys() == to_torchvision(batch).keys()


def test_cifar_weights_of_others_score_what_they_scored(data_dir: Path) -> None:
    model = cifar_resnet(20)
    load_backbone_weights(model, data_dir / "cifar_resnet_weights" / "resnet20-12fca82f.th")
    mosaic = np.asarray(Image.open(data_dir / "cifar10" / "test_batch.webp"))[:160]
    tiles = mosaic.reshape(5, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    pixels = torch.from_numpy(tiles.copy()) / 255
    frame = lzma.decompress((data_dir / "cifar10" / "test_batch.frame.xz").read_bytes())
    start = frame.index(b"]q\x05(") + 4  # pickled list: each label is a "K" and a byte
    labels = torch.tensor(list(frame[start + 1 : start + 1000 : 2]))
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    with torch.inference_mode():
        logits = model.eval()((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(0.9173, abs=0.02)
