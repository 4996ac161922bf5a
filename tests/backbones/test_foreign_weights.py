"""Weights from detectron2 and Caffe2: the loaded model equals the original network.

The files are written here layer by layer. The networks have the blocks of ResNet-18 and ResNet-50,
and few channels. Networks and files are in float64, so that a conversion error cannot hide behind
rounding.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones.blocks import BasicBlock, Bottleneck, PaperBottleneck
from backbones.resnet import ResNet, cifar_resnet
from backbones.weights import WeightsReport, load_backbone_weights
from engine.errors import UserError

State = dict[str, Tensor]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "18": (BasicBlock, (2, 2, 2, 2)),
    "50": (PaperBottleneck, (3, 4, 6, 3)),
    "50-3x3": (Bottleneck, (3, 4, 6, 3)),
}


def build(kind: str = "50", **options: Any) -> ResNet:
    block, layers = BLOCKS[kind]
    # a large eps, so that a conversion that ignores it fails
    options = {"num_classes": 5, "norm_eps": 1e-3} | options
    return ResNet(block, layers, widths=(4, 4, 8, 8), **options).double().eval()


def trained(kind: str = "50") -> ResNet:
    """Return a network with random weights and norms, for pixels that are not divided by a std."""
    model = build(kind)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.5)
            module.get_buffer("running_mean").normal_(0, 0.5)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
    model.conv1.weight.data /= 50
    return model


def convolutions(model: ResNet, stage: int) -> Iterator[tuple[int, int, nn.Module, nn.Module]]:
    """Yield (block index, 1 to 3 or 0 for the shortcut, convolution, norm) of stage res{stage}."""
    for index, block in enumerate(model.get_submodule(f"layer{stage - 1}").children()):
        assert isinstance(block, BasicBlock | Bottleneck)
        yield index, 1, block.conv1, block.bn1
        yield index, 2, block.conv2, block.bn2
        if isinstance(block, Bottleneck):
            yield index, 3, block.conv3, block.bn3
        if isinstance(block.downsample, nn.Sequential):
            yield index, 0, block.downsample[0], block.downsample[1]


def in_detectron2(model: ResNet, classifier: str = "linear") -> State:
    """Return the state dict that detectron2 would write for `model`."""
    state: State = {"stem.conv1.weight": model.conv1.weight.data}
    state |= {f"stem.conv1.norm.{n}": t for n, t in model.bn1.state_dict().items()}
    for stage in (2, 3, 4, 5):
        for block, number, convolution, norm in convolutions(model, stage):
            layer = f"res{stage}.{block}.{f'conv{number}' if number else 'shortcut'}"
            state[f"{layer}.weight"] = convolution.get_parameter("weight").data
            state |= {f"{layer}.norm.{n}": t for n, t in norm.state_dict().items()}
    fc = {f"{classifier}.{n}": tensor for n, tensor in model.fc.state_dict().items()}
    return state | fc if classifier else state


def caffe2_norm(name: str, norm: nn.Module, folded: bool) -> State:
    assert isinstance(norm, nn.BatchNorm2d)
    gamma, beta = norm.weight.data, norm.bias.data
    mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    if folded:
        scale = gamma / (var + norm.eps) ** 0.5
        return {f"{name}_s": scale, f"{name}_b": beta - mean * scale}
    return {
        f"{name}_gamma": gamma,
        f"{name}_beta": beta,
        f"{name}_running_mean": mean,
        f"{name}_running_var": var,
    }


def in_caffe2(model: ResNet, folded: bool = True) -> State:
    """Return the Caffe2 blobs of `model`: Detectron's, or detectron2's with unfolded norms."""
    state: State = {"conv1_w": model.conv1.weight.data}
    state |= caffe2_norm("res_conv1_bn", model.bn1, folded)
    for stage in (2, 3, 4, 5):
        for block, number, convolution, norm in convolutions(model, stage):
            layer = f"res{stage}_{block}_branch{('1', '2a', '2b', '2c')[number]}"
            state[f"{layer}_w"] = convolution.get_parameter("weight").data
            state |= caffe2_norm(f"{layer}_bn", norm, folded)
    return state | {f"fc1000_{n[0]}": tensor for n, tensor in model.fc.state_dict().items()}


def arrays(state: State) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def write(path: Path, state: State, **metadata: Any) -> Path:
    """Write {"model": ...} as detectron2 does, to a .pkl or a .pth file."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": arrays(state), **metadata}))
    else:
        torch.save({"model": OrderedDict(state), "iteration": 7}, path)
    return path


def load(
    model: ResNet, path: Path, pixels: Literal["auto", "rgb", "bgr"] = "auto", **options: Any
) -> WeightsReport:
    options = {"pixel_mean": MEAN, "pixel_std": STD} | options
    return load_backbone_weights(model, path, pixels=pixels, **options)


def random_pixels() -> Tensor:
    """Return two RGB images, (B, 3, H, W)."""
    return torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8).double()


def column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(3, 1, 1)


def assert_same_on_pixels(
    ours: ResNet,
    theirs: ResNet,
    *,
    order: str = "bgr",
    std: tuple[float, ...] = (1.0, 1.0, 1.0),
    mean: tuple[float, ...] = MEAN,
) -> None:
    """Compare logits of ours on normalised RGB, and of theirs on its project's input format."""
    pixels = random_pixels()
    x = (pixels - column(mean)) / column(std)
    x = x.flip(1) if order == "bgr" else x
    with torch.no_grad():
        want = theirs(x)
        got = ours((pixels - column(mean)) / column(STD))
    assert want.std() > 0.1
    # FrozenBatchNorm2d keeps its scale in float32
    is_frozen = not isinstance(ours.bn1, nn.BatchNorm2d)
    torch.testing.assert_close(got, want, rtol=1e-4 if is_frozen else 1e-9, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "frozen", "fixed_statistics"])
@pytest.mark.parametrize("kind", ["18", "50"])
@pytest.mark.parametrize("wrap", ["", "blobs", "model"], ids=["bare", "blobs", "model"])
def test_caffe2_with_folded_norms(tmp_path: Path, kind: str, wrap: str, norm: str) -> None:
    theirs, path = trained(kind), tmp_path / "R-50.pkl"
    blobs = arrays(in_caffe2(theirs))
    path.write_bytes(pickle.dumps({wrap: blobs, "cfg": "text"} if wrap else blobs))
    ours = build(kind, norm=norm)
    report = load(ours, path)
    assert_same_on_pixels(ours, theirs)
    assert (report.source, report.unexpected) == ("Caffe2 (MSRA)", ())
    folded = (
        "batch norm is folded in the file: loaded with running mean 0, running variance 1 - eps"
    )
    frozen_only = "; correct only if norms do not train (model.backbone.norm=frozen)"
    assert report.notes == (
        folded + (frozen_only if norm == "batch" else ""),
        *(["bottlenecks stride on the 1x1, in the file and in the model"] if kind == "50" else []),
        "conv1 expects BGR pixels with std [1, 1, 1] (RGB): converted to the model's RGB pixels "
        "with std [58.395, 57.12, 57.375]",
    )


def test_caffe2_with_unfolded_norms_and_biases(tmp_path: Path) -> None:
    theirs = trained()
    state = in_caffe2(theirs, folded=False)
    biased = {"conv1": 4, "res2_0_branch1": 16, "res4_3_branch2b": 8}
    biases = {f"{name}_b": torch.randn(size).double() for name, size in biased.items()}
    zeros = {"res2_0_branch2a_b": torch.zeros(4).double()}
    path = write(tmp_path / "R-50.pkl", state | biases | zeros, __author__="MSRA")
    ours = build()
    report = load(ours, path)
    theirs.conv1.bias = nn.Parameter(biases["conv1_b"])
    theirs.get_submodule("layer1.0.downsample.0").bias = nn.Parameter(biases["res2_0_branch1_b"])
    theirs.get_submodule("layer3.3.conv2").bias = nn.Parameter(biases["res4_3_branch2b_b"])
    assert_same_on_pixels(ours, theirs)
    assert report.notes[0] == "biases of 3 convolutions folded into the norms after them"
    assert report.unexpected == ()


def test_caffe2_reports_unused_tensors(tmp_path: Path) -> None:
    theirs = trained()
    extra = [
        "conv1_w_momentum",
        "res2_0_branch2a_w_momentum",
        "rpn_cls_logits_w",
        "fpn_res2_2_sum_w",
    ]
    state = in_caffe2(theirs) | {name: torch.zeros(1) for name in extra}
    ours = build(num_classes=None)
    report = load(ours, write(tmp_path / "R-50.pkl", state))
    assert report.unexpected == ("fc1000_w", "fc1000_b", *extra)
    theirs.fc = ours.fc
    assert_same_on_pixels(ours, theirs)


BUFFERS = {  # pixel formats of detectron2's detectors: channel order, std in that order
    "msra": ("bgr", (1.0, 1.0, 1.0)),
    "fair": ("bgr", STD[::-1]),
    "torchvision": ("rgb", STD),
    "halves": ("rgb", (127.5, 127.5, 127.5)),
}


@pytest.mark.parametrize("buffers", list(BUFFERS))
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_detectron2_pixel_format_from_buffers(tmp_path: Path, suffix: str, buffers: str) -> None:
    order, std = BUFFERS[buffers]
    kind = "50" if buffers == "msra" else "50-3x3"
    theirs = trained(kind)
    if buffers != "msra":
        theirs.conv1.weight.data *= 50
    state = in_detectron2(theirs)
    state["pixel_mean"] = column(MEAN[::-1] if order == "bgr" else MEAN)
    state["pixel_std"] = column(std)
    ours = build(kind)
    report = load(ours, write(tmp_path / f"model{suffix}", state, __author__="Model Zoo"))
    assert_same_on_pixels(ours, theirs, order=order, std=std[::-1] if order == "bgr" else std)
    assert (report.source, report.unexpected) == ("detectron2", ("pixel_mean", "pixel_std"))
    where = "1x1" if buffers == "msra" else "3x3"
    assert report.notes[0] == f"bottlenecks stride on the {where}, in the file and in the model"
    assert len(report.notes) == (1 if buffers == "torchvision" else 2)


@pytest.mark.parametrize("kind", ["18", "50"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up."])
def test_detectron2_prefixes(tmp_path: Path, prefix: str, kind: str) -> None:
    theirs = trained(kind)
    state = {prefix + name: tensor for name, tensor in in_detectron2(theirs).items()}
    ours = build(kind)
    report = load(ours, write(tmp_path / "model.pth", state), "bgr")
    assert_same_on_pixels(ours, theirs)
    assert report.unexpected == ()


def test_detectron2_c4_detector(tmp_path: Path) -> None:
    theirs = trained()
    state = {
        f"{'roi_heads' if name.startswith('res5.') else 'backbone'}.{name}": tensor
        for name, tensor in in_detectron2(theirs, classifier="").items()
    }
    rest = ["proposal_generator.rpn_head.conv.weight", "roi_heads.box_predictor.cls_score.weight"]
    state |= {name: torch.zeros(1) for name in rest}
    ours = build(num_classes=None)
    report = load(ours, write(tmp_path / "model.pkl", state), "bgr")
    assert report.unexpected == tuple(rest)
    theirs.fc = ours.fc
    assert_same_on_pixels(ours, theirs)


def test_detectron2_file_converted_from_torchvision(tmp_path: Path) -> None:
    theirs = trained("50-3x3")
    state = in_detectron2(theirs, classifier="stem.fc")
    path = write(tmp_path / "r50.pkl", state, __author__="torchvision", matching_heuristics=True)
    ours = build("50-3x3")
    report = load(ours, path)
    assert_same_on_pixels(ours, theirs, order="rgb", std=STD)
    assert report.notes == ("bottlenecks stride on the 3x3, in the file and in the model",)


def test_detectron2_group_norm_is_loaded_into_group_norm(tmp_path: Path) -> None:
    theirs = trained("50-3x3")
    state = {n: t for n, t in in_detectron2(theirs).items() if "running" not in n}
    ours = build("50-3x3", norm="group")
    load(ours, write(tmp_path / "gn.pth", state), "rgb")
    name = "layer1.0.bn2.weight"
    torch.testing.assert_close(ours.get_parameter(name), theirs.get_parameter(name))


def test_torchvision_names_with_msra_pixels(tmp_path: Path) -> None:
    theirs = trained()
    torch.save(theirs.state_dict(), tmp_path / "resnet50_caffe.pth")
    ours = build()
    report = load(ours, tmp_path / "resnet50_caffe.pth", "bgr")
    assert_same_on_pixels(ours, theirs)
    assert report.source == "torchvision or timm"


@pytest.mark.parametrize("pixels", ["auto", "rgb"])
def test_torchvision_names_unchanged(tmp_path: Path, pixels: Literal["auto", "rgb"]) -> None:
    theirs = trained()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    ours = build()
    assert load(ours, tmp_path / "resnet50.pth", pixels, pixel_mean=(0, 0, 0)).notes == ()
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_akamaster_is_recognised(tmp_path: Path) -> None:
    theirs = cifar_resnet(8)
    state = {f"module.{n}".replace("fc.", "linear."): t for n, t in theirs.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet8.th")
    ours = cifar_resnet(8)
    assert load(ours, tmp_path / "resnet8.th").source == "akamaster"
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_detectrons_pixel_mean_is_within_tolerance(tmp_path: Path) -> None:
    mean = (122.7717, 115.9465, 102.9801)
    theirs, ours = trained(), build()
    report = load(ours, write(tmp_path / "R-50.pkl", in_caffe2(theirs)), pixel_mean=mean)
    assert_same_on_pixels(ours, theirs, mean=mean)
    assert report.notes[-1] == (
        "the file's pixel mean is [123.675, 116.28, 103.53] (RGB), the model's "
        "[122.772, 115.947, 102.98]: the difference is under one grey level and is ignored"
    )


def as_caffe2(kind: str = "50", **extra: Tensor) -> Callable[[], State]:
    return lambda: in_caffe2(trained(kind)) | extra


def as_detectron2(**extra: Tensor) -> Callable[[], State]:
    names = {name.replace("__", "."): tensor for name, tensor in extra.items()}
    return lambda: in_detectron2(trained()) | names


def without_statistics() -> State:
    return {n: t for n, t in in_detectron2(trained()).items() if "running" not in n}


ONE, GREY = torch.ones(1), column((127.5, 127.5, 127.5))
DEFORMABLE = {"res3__0__conv2_offset__weight": ONE}
RGB_BUFFERS = {"pixel_mean": column(MEAN), "pixel_std": column((1, 1, 1))}
STRIDE, SET_PIXELS = (
    "expected model.backbone.stride_in_1x1",
    "set model.backbone.pixels=bgr .* or rgb",
)
BGR, RGB, GROUP = {"pixels": "bgr"}, {"pixels": "rgb"}, {"norm": "group"}
REFUSED: dict[str, tuple[Callable[[], State], str, dict[str, Any], str]] = {
    "stride": (as_caffe2(), "50-3x3", {}, rf"{STRIDE}=true \(.* on the 1x1\), got false$"),
    "stride-msra": (as_detectron2(), "50-3x3", BGR, rf"{STRIDE}=true \(.* 1x1\), got false$"),
    "stride-rgb": (as_detectron2(), "50", RGB, rf"{STRIDE}=false \(.* on the 3x3\), got true$"),
    "no-pixel-format": (as_detectron2(), "50", {}, f"specify its pixel format.* {SET_PIXELS}"),
    "grey-mean": (as_detectron2(pixel_mean=GREY, pixel_std=GREY), "50", {}, SET_PIXELS),
    "setting-contradicts-file": (
        as_detectron2(**RGB_BUFFERS),
        "50",
        BGR,
        r"expected model.backbone.pixel_mean=\[103.53, 116.28, 123.675\]",
    ),
    "pixel-mean": (
        as_caffe2(),
        "50",
        {"pixel_mean": (127.5, 127.5, 127.5)},
        r"expected model.backbone.pixel_mean=\[123.675, 116.28, 103.53\] \(RGB, the file's\), "
        r"got \[127.5, 127.5, 127.5\]$",
    ),
    "group-norm": (
        as_caffe2(res2_0_branch2a_gn_s=ONE),
        "50",
        {},
        r"expected a network with batch norm, got group norm \(res2_0_branch2a_gn_s\)$",
    ),
    "group-norm-detectron2": (
        without_statistics,
        "50",
        BGR,
        r"network with group norm, but the model has batch norm \(missing: bn1.running_mean, ",
    ),
    "group-norm-model": (as_caffe2(), "50", GROUP, "batch norm, but the model has group norm"),
    "depth": (as_caffe2("18"), "50", {}, r"missing: layer1.0.conv3.weight, .* 160 more$"),
    "deformable": (as_detectron2(**DEFORMABLE), "50", BGR, "unexpected: res3.0.conv2_offset.w"),
    "deep-stem": (as_detectron2(stem__conv2__weight=ONE), "50", BGR, "unexpected: conv2.weight$"),
    "other-norm": (as_caffe2(res2_0_branch1_bn_rm=ONE), "50", {}, ": res2_0_branch1_bn_rm$"),
    "grey": (as_caffe2(conv1_w=torch.ones(4, 1, 7, 7)), "50", {}, r"got \(4, 1, 7, 7\)$"),
}


@pytest.mark.parametrize(
    ("state", "kind", "options", "message"), REFUSED.values(), ids=list(REFUSED)
)
def test_bad_file_gives_an_error_and_no_change(
    tmp_path: Path, state: Callable[[], State], kind: str, options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "R-50.pkl", state())
    model = build(kind, norm=options.get("norm", "batch"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load(model, path, **{key: value for key, value in options.items() if key != "norm"})
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(dict(model.state_dict()), before)
