"""Residual networks of detectron2 and of Caffe2 (MSRA): their names, norms, strides and pixels.

B images, C channels, k x k kernels. "Theirs" is the file's, "ours" the model's; our names are
torchvision's. Caffe2's names are in Detectron's ImageNet files, with the batch norm folded into a
scale `s` and a shift `b`, and in detectron2's copies of them, with the norm whole.
"""

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from backbones.blocks import Bottleneck
from backbones.resnet import ResNet
from engine.errors import UserError
from engine.paths import open_file

CAFFE2, DETECTRON2 = "Caffe2 (MSRA)", "detectron2"
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
# Norms are of the convolution before them; the first entry is the stem's in Caffe2.
_LAYERS: dict[str | None, str] = {
    **{None: "1", "branch2a": "1", "branch2b": "2", "branch2c": "3"},
    **{"conv1": "1", "conv2": "2", "conv3": "3"},
}
_PARAMETERS = {"w": "weight", "s": "weight", "gamma": "weight", "b": "bias", "beta": "bias"}
_CLASSIFIERS = {
    "linear.weight": "fc.weight",
    "linear.bias": "fc.bias",
    "stem.fc.weight": "fc.weight",  # so named by detectron2's script for torchvision's files
    "stem.fc.bias": "fc.bias",
    "fc1000_w": "fc.weight",
    "fc1000_b": "fc.bias",
}


@dataclass(frozen=True)
class PixelFormat:
    """What a network takes: pixels on the scale 0..255, less `mean`, over `std`.

    mean, std: of red, green and blue, whichever the order of the channels.
    """

    order: Literal["rgb", "bgr"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def has_unit_std(self) -> bool:
        """Whether pixels are not divided, which marks the networks that descend from MSRA's."""
        return self.std == (1.0, 1.0, 1.0)


# detectron2/config/defaults.py; the std is absorbed into the weights of conv1.
_MSRA = PixelFormat("bgr", (123.675, 116.28, 103.53), (1.0, 1.0, 1.0))
# Under the same files Detectron subtracts 122.7717, 115.9465, 102.9801: both count as theirs.
_MEAN_TOLERANCE = 1.0


def detectron2_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return our name of each tensor of a detectron2 file's residual network, by its own name.

    The rest of a detector has no entry; {} when the file is not detectron2's. Layers of the
    network that ours does not have keep their name, so that loading them fails.
    """
    prefix = next((p for p in _DETECTRON2_PREFIXES if f"{p}stem.conv1.weight" in state), None)
    if prefix is None:
        return {}
    names = {}
    for name in state:
        # C4 detectors keep the last stage in the head that runs on every region.
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
    """Return our name of each tensor of a Caffe2 file's residual network, by its own name.

    Momentum and the rest of a detector have no entry; {} when the file is not Caffe2's. Layers of
    the network that ours does not have keep their name, so that loading them fails.

    Raises:
        UserError: a network with group norm.
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


def complete_norms(
    tensors: Mapping[str, Tensor], model: ResNet
) -> tuple[dict[str, Tensor], list[str]]:
    """Give folded norms the statistics with which the model's compute s * x + b.

    tensors: by our names, and so is the result. Returns notes beside.
    """
    modules = dict(model.named_modules())
    added = {}
    for name, scale in tensors.items():
        norm = name.removesuffix(".weight")
        is_norm = re.search(r"(bn\d|downsample\.1)\.weight$", name) is not None
        if is_norm and f"{norm}.running_var" not in tensors:
            eps = getattr(modules.get(norm), "eps", 0.0)  # no such module: loading will say so
            added[f"{norm}.running_mean"] = torch.zeros_like(scale)
            added[f"{norm}.running_var"] = torch.full_like(scale, 1 - eps)
    if not added:
        return dict(tensors), []
    note = "batch norm is folded in the file: loaded with running mean 0, running variance 1 - eps"
    if any(isinstance(module, nn.BatchNorm2d) for module in modules.values()):
        # its own statistics would take the place of those that were folded
        note += "; right only while norms do not train (model.backbone.norm=frozen)"
    return {**tensors, **added}, [note]


def absorb_biases(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Subtract the biases of convolutions from the running means behind them, which is the same.

    MSRA's ResNet-50 has one in its stem, Detectron's copies zeros everywhere. A bias without such
    a mean stays. tensors: by our names, and so is the result. Returns notes beside.
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
    note = f"biases of {len(absorbed)} convolutions taken into the norms behind them"
    return result, [note] if absorbed else []


def check_stride(model: ResNet, *, in_1x1: bool, path: Path | str) -> list[str]:
    """Compare where bottlenecks stride: shapes do not tell; basic blocks have no choice.

    in_1x1: of the file's network. Returns a note, or none for basic blocks.

    Raises:
        UserError: the model strides elsewhere.
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


def pixels_of_file(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    source: str,
    setting: PixelOrder,
    ours: PixelFormat,
    path: Path | str,
) -> PixelFormat:
    """Tell which pixels a file's network takes.

    The setting gives the order of channels. "auto": Caffe2's files take BGR. detectron2's take the
    order in which their buffer `pixel_mean` lists ImageNet's mean, whose red is the largest; or
    RGB when torchvision is their "__author__". All others take RGB. Mean and std are those of
    detectron2's buffers; without them, BGR goes with MSRA's and RGB with the model's own.

    Raises:
        UserError: "auto", and a detectron2 file that does not tell.
    """
    mean, std = (_channel_values(state, name, source) for name in ("pixel_mean", "pixel_std"))
    order: Literal["rgb", "bgr"]
    if setting != "auto":
        order = setting
    elif source == CAFFE2:
        order = "bgr"
    elif mean and mean[0] != mean[2]:
        order = "bgr" if mean[0] < mean[2] else "rgb"
    elif source != DETECTRON2 or metadata.get("__author__") == "torchvision":
        order = "rgb"
    else:
        raise UserError(
            f"{path}: a detectron2 file that does not say which pixels it takes: set "
            "model.backbone.pixels=bgr (trained from MSRA's weights, detectron2's default) or "
            "rgb (from torchvision's)"
        )
    if mean and std:
        if not all(value > 0 for value in std) or not all(map(math.isfinite, (*mean, *std))):
            raise UserError(f"{path}: pixel_std: expected positive numbers, got {_numbers(std)}")
        step = -1 if order == "bgr" else 1
        return PixelFormat(order, mean[::step], std[::step])
    return _MSRA if order == "bgr" else ours


def _channel_values(state: Mapping[str, Tensor], name: str, source: str) -> tuple[float, ...]:
    """Return a detectron2 detector's three numbers in its order of channels; () without them."""
    tensor = state.get(name) if source == DETECTRON2 else None
    return tuple(tensor.flatten().tolist()) if tensor is not None and tensor.numel() == 3 else ()


def fold_pixels(
    weight: Tensor, *, theirs: PixelFormat, ours: PixelFormat, path: Path | str
) -> tuple[Tensor, list[str]]:
    """Change the first convolution so that on our pixels it computes what it did on theirs.

    weight: (C, 3, k, k); of any other shape it is returned as it is. Returns notes beside.

    Raises:
        UserError: the means differ; the zeros around an image stand for the mean, so that no
            change of the weights makes up for another.
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
    ratios = [own / other for own, other in zip(ours.std, theirs.std, strict=True)]
    factors = torch.tensor(ratios, dtype=torch.float64)
    if theirs.order == "bgr":
        weight = weight.flip(1)
    if theirs.order == "bgr" or not torch.allclose(factors, torch.ones_like(factors)):
        weight = weight * factors.to(weight.dtype).view(1, 3, 1, 1)
        notes.append(
            f"conv1 is made for {theirs.order.upper()} pixels over {_numbers(theirs.std)} (RGB): "
            f"changed for the model's RGB pixels over {_numbers(ours.std)}"
        )
    if gap > 1e-3:  # else the file's rounding to float32
        notes.append(
            f"the file's pixel mean is {_numbers(theirs.mean)} (RGB), the model's "
            f"{_numbers(ours.mean)}: less than a grey level apart, left so"
        )
    return weight, notes


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def read_pickle(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a pickle of numpy arrays, the dict itself or one under "model" or "blobs".

    Returns the arrays as tensors, and "__author__" when the file has one.

    Raises:
        UserError: missing, cut short, not such a pickle, or one that wants to run other code.
    """
    try:
        with open_file(path) as file:
            payload = _ArrayUnpickler(file, path).load()
        blobs = payload.get("model", payload.get("blobs", payload))
        state = {n: v.tensor if isinstance(v, _Array) else v for n, v in blobs.items()}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights: {error.strerror}") from error
    except Exception as error:  # bytes of another kind make the unpickler raise whatever it meets
        raise UserError(
            f"{path}: expected a pickle of numpy arrays, got a damaged or foreign file"
        ) from error
    author = payload.get("__author__")
    return state, {"__author__": author} if isinstance(author, str) else {}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler for which nothing but arrays, text, numbers and their containers exist.

    A pickle can call whatever it names, and names are looked up in `find_class` alone. Here they
    lead to the few stand-ins below, so that neither code of the file's choosing nor numpy's own
    unpickling, which trusts its input, ever runs.
    """

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # what numpy asks for with files of Python 2
        self.path = path

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the stand-in for a name."""
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # since numpy 2
        if full_name not in _STAND_INS:
            raise UserError(
                f"{self.path}: expected a pickle of numpy arrays, got one that wants to run the "
                f"code {full_name!r}; it was not run"
            )
        return _STAND_INS[full_name]


class _Dtype:
    """Stand-in for numpy.dtype."""

    def __init__(self, code: str, *_flags: object) -> None:
        if code not in ("f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1"):
            raise pickle.UnpicklingError(f"array of {code}")
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]


class _Array:
    """Stand-in for numpy.ndarray; `tensor` is there once the state is."""

    tensor: Tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, is_fortran, data = state
        self.tensor = _array(data, dtype, shape, "F" if is_fortran else "C").tensor


def _array(data: Any, dtype: _Dtype, shape: Any, order: Any, axes: Any = None) -> _Array:
    """Stand in for numpy's array from bytes (protocol 5); order "K": in memory, `axes` permuted."""
    raw = _encode(data) if isinstance(data, str) else data  # Python 2 did not tell them apart
    array = np.frombuffer(raw, dtype.byte_order + dtype.code)
    if order == "K":
        array = array.reshape(shape).transpose(axes)
    else:
        array = array.reshape(shape, order=order)
    result = _Array()
    result.tensor = torch.from_numpy(array.astype(dtype.code))  # a copy, in this machine's order
    return result


def _encode(text: str, _encoding: str = "latin1") -> bytes:
    """Stand in for codecs.encode, by which Python 3 writes bytes to protocol 2: as latin1."""
    return text.encode("latin1")


_STAND_INS = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": lambda dtype, data: _array(data, dtype, (), "C"),
    "numpy.core.numeric._frombuffer": _array,
}
