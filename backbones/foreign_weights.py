"""Conversion of weights from detectron2 and Caffe2 (MSRA): names, norms, strides, pixel formats.

C channels, k x k kernels. "Theirs" means the file's, "ours" the model's; our tensor names are
torchvision's. Caffe2's names occur in Detectron's ImageNet files, which have the batch norm folded
into a scale `s` and a shift `b`, and in detectron2's copies of them, which have all its tensors.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from backbones.blocks import Bottleneck
from backbones.vgg_weights import FIRST_CONVOLUTION
from engine.errors import UserError

CAFFE2, DETECTRON2 = "Caffe2 (MSRA)", "detectron2"
FIRST_CONVOLUTIONS = ("conv1.weight", FIRST_CONVOLUTION)
"""The layer that reads the pixels: of a residual network, of VGG-16."""
PixelOrder = Literal["auto", "rgb", "bgr"]

_DETECTRON2_PREFIXES = ("backbone.bottom_up.", "backbone.", "")
_DETECTRON2_LAYER = re.compile(
    r"(?:stem|res(?P<stage>[2-5])\.(?P<block>\d+))\."
    r"(?P<layer>conv[123]|shortcut)(?P<norm>\.norm)?\.(?P<parameter>\w+)"
)
_CAFFE2_LAYER = re.compile(
    r"(?:res(?P<stage>[2-5])_(?P<block>\d+)_(?P<layer>branch1|branch2[abc])|(?:res_)?conv1)"
    r"(?P<norm>_bn)?_(?P<parameter>w|b|s|gamma|beta|running_mean|running_var)"
)
# Number of our convolution, and of the norm after it, by their layer. None: Caffe2's stem.
_LAYERS: dict[str | None, str] = {
    **{None: "1", "branch2a": "1", "branch2b": "2", "branch2c": "3"},
    **{"conv1": "1", "conv2": "2", "conv3": "3"},
}
_PARAMETERS = {"w": "weight", "s": "weight", "gamma": "weight", "b": "bias", "beta": "bias"}
_CLASSIFIERS = {
    "linear.weight": "fc.weight",
    "linear.bias": "fc.bias",
    "stem.fc.weight": "fc.weight",  # from detectron2's conversion script for torchvision's files
    "stem.fc.bias": "fc.bias",
    "fc1000_w": "fc.weight",
    "fc1000_b": "fc.bias",
}


@dataclass(frozen=True)
class PixelFormat:
    """Input format of a network: channel order, and normalisation (pixels - mean) / std.

    mean, std: of red, green and blue in this order, for any channel order; on the scale 0..255.
    """

    order: Literal["rgb", "bgr"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def has_unit_std(self) -> bool:
        """Whether pixels are not divided by a std; true of networks that come from MSRA's."""
        return self.std == (1.0, 1.0, 1.0)


# From detectron2/config/defaults.py. The std is 1 because conv1's weights contain the division.
_MSRA = PixelFormat("bgr", (123.675, 116.28, 103.53), (1.0, 1.0, 1.0))
# Detectron uses the same files with mean 122.7717, 115.9465, 102.9801; both means are accepted.
_MEAN_TOLERANCE = 1.0


def detectron2_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a map from detectron2's tensor names to ours, for the residual network of a file.

    The rest of a detector has no entry; {} if the file is not detectron2's. Layers that our
    network does not have keep their names, so that loading them fails.
    """
    prefix = next((p for p in _DETECTRON2_PREFIXES if f"{p}stem.conv1.weight" in state), None)
    if prefix is None:
        return {}
    names = {}
    for name in state:
        # C4 detectors have the last stage (res5) in the head, which runs on every region.
        own = name.removeprefix("roi_heads.") if ".res5." in name else name
        own = own.removeprefix(prefix)
        if own in _CLASSIFIERS:
            names[name] = _CLASSIFIERS[own]
        elif match := _DETECTRON2_LAYER.fullmatch(own):
            names[name] = _our_name(match)
        elif re.match(r"stem\.|res[2-5]\.", own):
            names[name] = own
    return names


def caffe2_names(state: Mapping[str, Tensor], *, path: Path | str) -> dict[str, str]:
    """Return a map from Caffe2's tensor names to ours, for the residual network of a file.

    Momentum and the rest of a detector have no entry; {} if the file is not Caffe2's. Layers that
    our network does not have keep their names, so that loading them fails.

    Raises:
        UserError: the network has group norm.
    """
    if "conv1_w" not in state:
        return {}
    names = {}
    for name in state:
        if re.match(r"(conv1|res_conv1|res\d_\d+_branch\w+)_gn_", name):
            raise UserError(f"{path}: expected a network with batch norm, got group norm ({name})")
        if name in _CLASSIFIERS:
            names[name] = _CLASSIFIERS[name]
        elif match := _CAFFE2_LAYER.fullmatch(name):
            names[name] = _our_name(match)
        elif re.match(r"res\d_\d+_", name) and not name.endswith("_momentum"):
            names[name] = name
    return names


def _our_name(match: re.Match[str]) -> str:
    block = f"layer{int(match['stage']) - 1}.{match['block']}." if match["stage"] else ""
    parameter = _PARAMETERS.get(match["parameter"], match["parameter"])
    if match["layer"] in ("shortcut", "branch1"):
        return f"{block}downsample.{1 if match['norm'] else 0}.{parameter}"
    return f"{block}{'bn' if match['norm'] else 'conv'}{_LAYERS[match['layer']]}.{parameter}"


def add_missing_norm_statistics(
    tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """Add running statistics to folded norms, such that the model's norm computes s * x + b.

    A norm computes weight * (x - mean) / sqrt(var + eps) + bias, so mean = 0 and var = 1 - eps.

    tensors: by our names. Returns them with the statistics added, and notes.
    """
    modules = dict(model.named_modules())
    added = {}
    for name, scale in tensors.items():
        norm = name.removesuffix(".weight")
        is_norm = re.search(r"(bn\d|downsample\.1)\.weight$", name) is not None
        if is_norm and f"{norm}.running_var" not in tensors:
            eps = getattr(modules.get(norm), "eps", 0.0)  # if missing, loading fails later
            added[f"{norm}.running_mean"] = torch.zeros_like(scale)
            added[f"{norm}.running_var"] = torch.full_like(scale, 1 - eps)
    if not added:
        return dict(tensors), []
    note = "batch norm is folded in the file: loaded with running mean 0, running variance 1 - eps"
    norms = (modules.get(name.rpartition(".")[0]) for name in added)
    if any(type(norm) is nn.BatchNorm2d for norm in norms):
        # it would use batch statistics in place of the folded ones
        note += "; correct only if norms do not train (model.backbone.norm=frozen)"
    return {**tensors, **added}, [note]


def fold_biases_into_norms(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove convolution biases by subtracting them from the running means of the norms after them.

    The output is unchanged: (x + bias) - mean = x - (mean - bias). MSRA's ResNet-50 has a bias in
    its stem; Detectron's copies have zero biases everywhere. A bias without a running mean is kept.

    tensors: by our names. Returns them without the biases, and notes.
    """
    result, absorbed = dict(tensors), []
    for name, bias in tensors.items():
        norm = re.sub(r"conv(\d)\.bias$", r"bn\1", name)
        norm = re.sub(r"downsample\.0\.bias$", "downsample.1", norm)
        mean = tensors.get(f"{norm}.running_mean")
        if norm == name or mean is None or mean.shape != bias.shape:
            continue
        result[f"{norm}.running_mean"] = mean - bias
        del result[name]
        if bias.any():
            absorbed.append(name)
    note = f"biases of {len(absorbed)} convolutions folded into the norms after them"
    return result, [note] if absorbed else []


def check_stride(model: nn.Module, *, in_1x1: bool, path: Path | str) -> list[str]:
    """Check that file and model have the bottleneck stride on the same convolution.

    Shapes do not show the difference. Basic blocks have only one possible place.

    in_1x1: whether the file's network strides on the 1x1. Returns a note, or [] for basic blocks.

    Raises:
        UserError: the model strides on the other convolution.
    """
    block = next((m for m in model.modules() if isinstance(m, Bottleneck)), None)
    if block is None:
        return []
    where = "1x1" if in_1x1 else "3x3"
    if block.stride_in_1x1 != in_1x1:
        raise UserError(
            f"{path}: expected model.backbone.stride_in_1x1={str(in_1x1).lower()} (the file's "
            f"bottlenecks stride on the {where}), got {str(block.stride_in_1x1).lower()}"
        )
    return [f"bottlenecks stride on the {where}, in the file and in the model"]


def pixel_format_of_file(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    source: str,
    setting: PixelOrder,
    ours: PixelFormat,
    path: Path | str,
) -> PixelFormat:
    """Return the pixel format that a file's network expects.

    The setting gives the channel order. With "auto", Caffe2 files are BGR. detectron2 files have
    the order in which their buffer `pixel_mean` lists ImageNet's mean, which is largest for red;
    without that buffer they are RGB if their "__author__" is torchvision. All other files are RGB.
    Mean and std come from detectron2's buffers; without them, BGR has MSRA's values and RGB the
    model's own.

    Raises:
        UserError: the setting is "auto", and a detectron2 file does not specify its channel order.
    """
    order = channel_order_of_file(state, metadata, source=source, setting=setting)
    if order is None:
        raise UserError(
            f"{path}: a detectron2 file that does not specify its pixel format: set "
            "model.backbone.pixels=bgr (trained from MSRA's weights, detectron2's default) or "
            "rgb (from torchvision's)"
        )
    mean, std = (_channel_values(state, name, source) for name in ("pixel_mean", "pixel_std"))
    if mean and std:
        if not all(value > 0 for value in std) or not all(map(math.isfinite, (*mean, *std))):
            raise UserError(f"{path}: pixel_std: expected positive numbers, got {_numbers(std)}")
        # the buffers list the file's channel order; PixelFormat lists RGB
        step = -1 if order == "bgr" else 1
        return PixelFormat(order, mean[::step], std[::step])
    return _MSRA if order == "bgr" else ours


def channel_order_of_file(
    state: Mapping[str, Tensor], metadata: Mapping[str, str], *, source: str, setting: PixelOrder
) -> Literal["rgb", "bgr"] | None:
    """Return the channel order that a file's network expects; None if it does not specify it.

    See `pixel_format_of_file`.
    """
    if setting != "auto":
        return setting
    if source == CAFFE2:
        return "bgr"
    mean = _channel_values(state, "pixel_mean", source)
    if mean and mean[0] != mean[2]:
        return "bgr" if mean[0] < mean[2] else "rgb"
    if source != DETECTRON2 or metadata.get("__author__") == "torchvision":
        return "rgb"
    return None


def _channel_values(state: Mapping[str, Tensor], name: str, source: str) -> tuple[float, ...]:
    """Return a detectron2 detector's buffer of three numbers, in its channel order; () if none."""
    tensor = state.get(name) if source == DETECTRON2 else None
    return tuple(tensor.flatten().tolist()) if tensor is not None and tensor.numel() == 3 else ()


def adapt_conv1_to_pixels(
    weight: Tensor, *, theirs: PixelFormat, ours: PixelFormat, path: Path | str
) -> tuple[Tensor, list[str]]:
    """Convert the first convolution so that it computes the same on our pixels as on theirs.

    weight: (C, 3, k, k); any other shape is returned unchanged. Returns the weight and notes.

    Raises:
        UserError: the means differ. No change of the weights can correct that, because the zero
            padding around an image stands for the mean.
    """
    gap = max(abs(a - b) for a, b in zip(theirs.mean, ours.mean, strict=True))
    if gap > _MEAN_TOLERANCE:
        raise UserError(
            f"{path}: expected model.backbone.pixel_mean={_numbers(theirs.mean)} (RGB, the "
            f"file's), got {_numbers(ours.mean)}"
        )
    if theirs == ours or weight.ndim != 4 or weight.shape[1] != 3:
        return weight, []
    notes = []
    # Our input is (p - mean) / ours.std, theirs (p - mean) / theirs.std, so each input channel of
    # the weight is multiplied by ours.std / theirs.std. A BGR weight is first reordered to RGB.
    ratios = [own / other for own, other in zip(ours.std, theirs.std, strict=True)]
    factors = torch.tensor(ratios, dtype=torch.float64)
    if theirs.order == "bgr":
        weight = weight.flip(1)
    if theirs.order == "bgr" or not torch.allclose(factors, torch.ones_like(factors)):
        weight = weight * factors.to(weight.dtype).view(1, 3, 1, 1)
        notes.append(
            f"conv1 expects {theirs.order.upper()} pixels with std {_numbers(theirs.std)} (RGB): "
            f"converted to the model's RGB pixels with std {_numbers(ours.std)}"
        )
    if gap > 1e-3:  # a smaller difference is rounding to float32 in the file
        notes.append(
            f"the file's pixel mean is {_numbers(theirs.mean)} (RGB), the model's "
            f"{_numbers(ours.mean)}: the difference is under one grey level and is ignored"
        )
    return weight, notes


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def adapt_to_model(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    *,
    source: str,
    theirs: PixelFormat,
    ours: PixelFormat,
    path: Path | str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert a file's backbone so that it computes the same in the model.

    Args:
        tensors: of the network, by our names.
        model: our network, or a detector that contains it; not changed.
        source: origin of the file.
        theirs: pixel format that the file's network expects.
        ours: pixel format of the model.
        path: of the file, for messages.

    Returns:
        the converted tensors, and notes.

    Raises:
        UserError: the model has the bottleneck stride elsewhere, or another pixel mean.
    """
    tensors = dict(tensors)
    notes: list[str] = []
    if source == CAFFE2:
        tensors, notes = add_missing_norm_statistics(tensors, model)
    if source in (CAFFE2, DETECTRON2):
        tensors, bias_notes = fold_biases_into_norms(tensors)
        in_1x1 = strides_in_1x1(source, theirs)
        notes += [*bias_notes, *check_stride(model, in_1x1=in_1x1, path=path)]
    first = next(name for name in FIRST_CONVOLUTIONS if name in tensors)
    conv1, pixel_notes = adapt_conv1_to_pixels(tensors[first], theirs=theirs, ours=ours, path=path)
    return tensors | {first: conv1}, [*notes, *pixel_notes]


def strides_in_1x1(source: str, pixels: PixelFormat) -> bool:
    """Return whether a detectron2 or Caffe2 file's bottlenecks stride on the 1x1 convolution.

    Networks from MSRA do; a detectron2 file whose pixels have a std of 1 comes from MSRA's.
    """
    return source == CAFFE2 or pixels.has_unit_std
