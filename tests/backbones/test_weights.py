import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones import ResNet, build_resnet
from backbones.array_pickles import read_pickle
from backbones.blocks import BasicBlock
from backbones.weights import (
    WeightsReport,
    load_backbone_weights,
    read_state,
    to_torchvision,
)
from engine.checkpoint import save_checkpoint, write_safetensors
from engine.errors import UserError

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def load(model: ResNet, path: Path | str) -> WeightsReport:
    return load_backbone_weights(model, path, pixel_mean=MEAN, pixel_std=STD)


def tiny(**options: Any) -> ResNet:
    """Return a ResNet with ResNet-18's tensor names and 4 channels."""
    options = {"num_classes": 3} | options
    return ResNet(BasicBlock, (2, 2, 2, 2), widths=(4, 4, 4, 4), **options)


def trained() -> ResNet:
    """Return a tiny network with random values in every tensor, norms included."""
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
    report = load(model, path)
    assert_same_weights(model, source)
    assert (report.path, report.source, report.unexpected) == (str(path), "resdet", ())
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_our_checkpoint_gives_its_averaged_weights(tmp_path: Path) -> None:
    path, source = tmp_path / "step_1.pt", trained()
    halves = {name: tensor / 2 for name, tensor in source.named_parameters()}
    payload = {"model": source.state_dict() | halves, "average": dict(source.named_parameters())}
    save_checkpoint(path, {**payload, "metadata": {"class_names": "[]"}})
    model = tiny()
    assert load(model, path).source == "resdet"
    assert_same_weights(model, source)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pixel_mean", MEAN, None),
        ("pixel_mean", (0, 0, 0), r"pixel_mean=\[0, 0, 0\] \(the file's\), got \[123.675, 116"),
        ("pixel_std", STD, None),
        ("pixel_std", (1.0, 1.0, 1.0), r"pixel_std=\[1.0, 1.0, 1.0\] \(the file's\), got \[58.395"),
    ],
    ids=["mean", "other-mean", "std", "other-std"],
)
def test_our_pixel_mean_and_std_must_equal_the_models(
    tmp_path: Path, key: str, value: tuple[float, ...], message: str | None
) -> None:
    path = tmp_path / "model.safetensors"
    metadata = {"pixel_mean": json.dumps(MEAN), "pixel_std": json.dumps(STD)}
    write_safetensors(path, trained().state_dict(), metadata | {key: json.dumps(value)})
    if message is None:
        assert load(tiny(), path).source == "resdet"
    else:
        with pytest.raises(UserError, match=f"{path}: expected model.backbone.{message}"):
            load(tiny(), path)


@pytest.mark.parametrize("wrap", ["", "state_dict", "model"], ids=["bare", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "model."])
def test_torch_file_with_prefixes(tmp_path: Path, prefix: str, wrap: str) -> None:
    path, source = tmp_path / "net.pth", trained()
    state = {prefix + name: tensor for name, tensor in to_torchvision(source).items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    model = tiny()
    report = load(model, str(path))
    assert_same_weights(model, source)
    assert (report.source, report.unexpected) == ("torchvision or timm", ())


def test_half_precision_file_without_counters(tmp_path: Path) -> None:
    source = trained().half()
    state = {n: t for n, t in source.state_dict().items() if "num_batches" not in n}
    torch.save(state, tmp_path / "net.pth")
    model = tiny()
    load(model, tmp_path / "net.pth")
    assert_same_weights(model, source.float())


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_backbone_without_fc_reports_the_unused_classifier(tmp_path: Path, norm: str) -> None:
    source = trained()
    torch.save(to_torchvision(source), tmp_path / "net.pth")
    model = tiny(num_classes=None, norm=norm)
    report = load(model, tmp_path / "net.pth")
    assert_same_weights(model, source)
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert report.lines() == [
        f"weights from {tmp_path / 'net.pth'} (torchvision or timm, sha256 "
        f"{report.sha256[:12]}, no checksum in it)",
        "not used: fc.weight, fc.bias",
    ]


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.body."], ids=["ours", "torchvision"])
def test_backbone_from_a_detector_file(tmp_path: Path, prefix: str) -> None:
    source = trained()
    state = {prefix + n: t for n, t in source.state_dict().items() if not n.startswith("fc")}
    torch.save(state | {"rpn_head.conv.weight": torch.zeros(1)}, tmp_path / "detector.pth")
    model = tiny(num_classes=None)
    report = load(model, tmp_path / "detector.pth")
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
    "unexpected": (lambda s: s | {"layer5.w": torch.ones(1)}, "unexpected: layer5.w$"),
    "both": (
        lambda s: without(s, "fc.bias") | {"fc.extra": torch.ones(1)},
        "missing: fc.bias; unexpected: fc.extra$",
    ),
    "shape": (
        lambda s: s | {"fc.weight": torch.ones(5, 4)},
        r"fc.weight: expected shape \(3, 4\), got \(5, 4\)$",
    ),
    "not-a-number": (
        lambda s: s | {"fc.bias": torch.tensor([0.0, torch.nan, torch.inf])},
        "fc.bias: expected finite numbers, got NaN or infinity in 2 of 3$",
    ),
    "foreign": (
        lambda _: {"encoder.w": torch.ones(1)},
        r"expected a residual network \(conv1.weight\), got encoder.w$",
    ),
    "deep-stem": (
        lambda s: without(s, "conv1") | {"conv1.0.weight": torch.ones(1)},
        r"expected a stem of one convolution \(conv1.weight\), got a deep stem \(conv1.0.weight\)$",
    ),
    "group-norm": (
        lambda s: {n: t for n, t in s.items() if "running" not in n},
        "network with group norm, but the model has batch norm .missing: bn1.running_mean, ",
    ),
    "empty": (lambda _: {}, r"expected a residual network \(conv1.weight\), got none$"),
    "not-tensors": (lambda _: {"epoch": 1}, "expected a state dict"),
}


@pytest.mark.parametrize(("change", "message"), BAD_STATES.values(), ids=list(BAD_STATES))
def test_bad_file_gives_a_one_line_error_and_no_change(
    tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "net.pth"
    torch.save(change(to_torchvision(trained())), path)
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load(model, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(dict(model.state_dict()), before)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "text", "absent"])
def test_damaged_file_gives_an_error(tmp_path: Path, name: str, damage: str) -> None:
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


def test_batch_norm_file_for_a_group_norm_model_is_an_error(tmp_path: Path) -> None:
    torch.save(to_torchvision(trained()), tmp_path / "net.pth")
    message = r"batch norm, but the model has group norm .*bn1.running_mean, .* and 35 more"
    with pytest.raises(UserError, match=message):
        load(tiny(norm="group"), tmp_path / "net.pth")


def test_counters_are_added_to_frozen_norms_for_torchvision() -> None:
    model = build_resnet("resnet18", num_classes=3, norm="frozen")
    batch = build_resnet("resnet18", num_classes=3, norm="batch")
    batch.load_state_dict(to_torchvision(model), strict=True)
    assert to_torchvision(model).keys() == to_torchvision(batch).keys()


class Trap:
    """Object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", ["posix.mkdir", "eval", "numpy.save"])
def test_pickle_runs_no_code(tmp_path: Path, name: str, protocol: int) -> None:
    path, created = tmp_path / "R-50.pkl", str(tmp_path / "created")
    traps = {
        "posix.mkdir": Trap(os.mkdir, created),
        "eval": Trap(eval, f"__import__('os').mkdir({created!r})"),
        "numpy.save": Trap(np.save, created, np.ones(1)),
    }
    blobs = {"conv1_w": np.ones(1), "trap": traps[name]}
    path.write_bytes(pickle.dumps({"model": blobs}, protocol=protocol))
    message = f"R-50.pkl: .* got one that tries to run the code '.*{name}'; it was not run$"
    with pytest.raises(UserError, match=message):
        load(tiny(), path)
    assert list(tmp_path.iterdir()) == [path]
    pickle.loads(path.read_bytes())  # plain unpickling does run the code
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999], ids=str)
def test_truncated_pickle(tmp_path: Path, share: float) -> None:
    path = tmp_path / "R-50.pkl"
    data = pickle.dumps({f"res{n}_w": np.ones((n, n)) for n in range(40)})
    path.write_bytes(data[: int(len(data) * share)])
    message = "R-50.pkl: expected a pickle of numpy arrays, got a damaged file or another format$"
    with pytest.raises(UserError, match=message):
        load(tiny(), path)


NOT_ARRAYS = {
    "list": (
        [np.ones(1)],
        "expected a pickle of numpy arrays, got a damaged file or another format$",
    ),
    "objects": ({"w": np.array(["x", None], dtype=object)}, "expected a pickle of numpy arrays"),
    "complex": ({"w": np.ones(2, dtype=complex)}, "expected a pickle of numpy arrays"),
    "number": ({"w": 3}, "expected a state dict"),
    "numbered": ({1: np.ones(1)}, "expected a state dict"),
    "empty": ({}, r"expected a residual network \(conv1.weight\), got none$"),
}


@pytest.mark.parametrize(("content", "message"), NOT_ARRAYS.values(), ids=list(NOT_ARRAYS))
def test_pickle_of_something_else(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=f"R-50.pkl: {message}"):
        load(tiny(), path)


def test_missing_pickle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"R-50.pkl: no such file"):
        read_state(tmp_path / "R-50.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_memory_layout_and_protocol(tmp_path: Path, protocol: int) -> None:
    cube = np.arange(24.0).reshape(2, 3, 4)
    content = {
        "rows": cube,
        "columns": np.asfortranarray(cube),
        "permuted": cube.transpose(0, 2, 1),
        "big-endian": np.array([1, 256], dtype=">i4"),
        "half": np.array([0.5], dtype=np.float16),
        "number": np.float32(2.5),
        "counter": np.array(7),
        "flags": np.array([True, False]),
    }
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    state, metadata = read_pickle(path)
    assert metadata == {}
    assert state.keys() == content.keys()
    for name, value in content.items():
        np.testing.assert_array_equal(state[name].numpy(), value)


def test_pickle_from_python_2(tmp_path: Path) -> None:
    # as written by numpy 1 on Python 2: bytes as str, and numpy's old module name
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x02tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x08" + np.array([1.5, -2], dtype="<f4").tobytes() + b"tb"
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(b"\x80\x02}U\x07conv1_b" + array + b"s.")
    state, _ = read_state(path)
    torch.testing.assert_close(state, {"conv1_b": torch.tensor([1.5, -2.0])})


@pytest.mark.extended
@pytest.mark.parametrize("in_file", [False, True])
def test_bottleneck_stride_of_our_file_must_equal_the_models(tmp_path: Path, in_file: bool) -> None:
    config = {"model": {"backbone": {"kind": "resnet50", "stride_in_1x1": in_file}}}
    metadata = {"class_names": "[]", "config": json.dumps(config)}
    path = tmp_path / "backbone.safetensors"
    write_safetensors(path, build_resnet("resnet50", stride_in_1x1=in_file).state_dict(), metadata)
    report = load(build_resnet("resnet50", stride_in_1x1=in_file), path)
    assert report.source == "resdet"
    expected = f"expected model.backbone.stride_in_1x1={str(in_file).lower()}"
    with pytest.raises(UserError, match=expected):
        load(build_resnet("resnet50", stride_in_1x1=not in_file), path)


def test_file_of_another_project_and_new_classes_are_both_noted(tmp_path: Path) -> None:
    path = tmp_path / "mmdetection.pth"
    state = {f"backbone.{name}": tensor for name, tensor in to_torchvision(trained()).items()}
    state = {name: tensor for name, tensor in state.items() if ".fc." not in name}
    torch.save(state | {"roi_head.bbox_head.fc_cls.weight": torch.zeros(2, 4)}, path)
    report = load_backbone_weights(tiny(), path, pixel_mean=MEAN, pixel_std=STD, new_classes=True)
    first, second = report.notes
    assert first.startswith("an mmdetection file does not specify its pixel format")
    assert second.startswith("fc is missing in the file: starts from random weights")
