"""Pretrained weights: reading, conversion from other projects' formats, checks and loading."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from backbones import vgg_weights
from backbones.array_pickles import read_pickle
from backbones.build_limit import build_within_limit
from backbones.config import NetworkConfig
from backbones.features import Backbone
from backbones.foreign_weights import (
    CAFFE2,
    DETECTRON2,
    PixelFormat,
    PixelOrder,
    adapt_to_model,
    caffe2_names,
    check_stride,
    detectron2_names,
    pixel_format_of_file,
)
from backbones.metadata import read_numbers, read_stride_in_1x1
from backbones.vgg import VGG16
from backbones.weights_origin import EMPTY, MMDETECTION, UNKNOWN, origin_of
from engine import checkpoint
from engine.checksum import checksum_note, file_digest
from engine.errors import UserError
from engine.paths import is_folder

_WRAPPERS, _MAX_WRAPPERS = ("state_dict", "model", "model_state_dict"), 3
"""Keys under which training scripts store a state dict, and how deep they may be nested."""
M = TypeVar("M", bound=nn.Module)

# Prefixes of a residual network's tensors: torchvision's detectors, ours, a bare network.
BACKBONE_PREFIXES = ("backbone.body.", "backbone.", "")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"  # buffer of BatchNorm2d; does not affect the network's output
RESDET, TORCHVISION, TIMM, AKAMASTER = "resdet", "torchvision", "torchvision or timm", "akamaster"


@dataclass(frozen=True)
class WeightsReport:
    """Report of loaded weights, for the log.

    sha256: of the file. source: "resdet" according to the file's metadata; otherwise found by
    tensor names: "torchvision" (detectors), "torchvision or timm", "detectron2", "Caffe2 (MSRA)"
    or "akamaster". unexpected: the file's tensors that the model does not have. notes: one line
    for each conversion, and for each agreement that names and shapes cannot show. has_checksum:
    whether the file has a checksum (it was correct).
    """

    path: str
    sha256: str
    source: str
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    has_checksum: bool = True

    def lines(self) -> list[str]:
        """Return the log lines: the file, the notes, the unused tensors."""
        checked = "" if self.has_checksum else ", no checksum in it"
        first = f"weights from {self.path} ({self.source}, sha256 {self.sha256[:12]}{checked})"
        unused = [f"not used: {listing(self.unexpected)}"] if self.unexpected else []
        return [first, *self.notes, *unused]


def network_metadata(
    task: str, class_names: Sequence[str], network: NetworkConfig, *, config: str
) -> dict[str, str]:
    """Return the metadata for the weights file of a network that predicts one class per image.

    config: the run's config, as JSON.
    """
    return {
        "task": task,
        "class_names": json.dumps(class_names),
        "pixel_mean": json.dumps(network.pixel_mean),
        "pixel_std": json.dumps(network.pixel_std),
        "config": config,
    }


def read_state(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict and its metadata ({} if there is none), without running code in the file.

    A torch.save file may hold the dict itself, or have it under one of `_WRAPPERS`. A pickle (.pkl)
    of numpy arrays may hold the dict itself, or have it under "model" or "blobs". If a run's
    checkpoint has averaged weights, these are returned. A prefix "module." or "model." that all
    names share is removed.

    Raises:
        UserError: the file is missing or truncated, or has no state dict.
    """
    path = Path(path)
    if is_folder(path):
        raise UserError(
            f"{path}: expected a weights file, such as a run's model.safetensors, got a folder"
        )
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        state, metadata = checkpoint.read_safetensors(path)
    elif path.suffix == ".pkl":
        state, metadata = read_pickle(path)
    else:
        payload = checkpoint.load_checkpoint(path)
        state, metadata = checkpoint.weights_of_checkpoint(payload) or (_unwrapped(payload), {})
    if not checkpoint.is_tensor_dict(state):
        others = [
            f"{name!r:.40} ({type(value).__name__})"
            for name, value in state.items()
            if not isinstance(value, Tensor) or not isinstance(name, str)
        ]
        raise UserError(
            f"{path}: expected a state dict (names and tensors only), got other entries: "
            f"{listing(others)}"
        )
    # the set has one element if all names share their first component; DataParallel adds "module."
    while {name[: name.find(".") + 1] for name in state} in ({"module."}, {"model."}):
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return state, metadata


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Return the innermost dict, following the keys of `_WRAPPERS`."""
    for _ in range(_MAX_WRAPPERS):
        inner = (state.get(key) for key in _WRAPPERS)
        state = next((value for value in inner if isinstance(value, dict)), state)
    return state


def make_weights_report(
    path: Path | str,
    metadata: Mapping[str, str],
    *,
    source: str = TORCHVISION,
    unexpected: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> WeightsReport:
    """Return the report of a loaded file. source: its origin if its metadata are not ours."""
    source = RESDET if _is_ours(metadata) else source
    return WeightsReport(
        str(path),
        file_digest(Path(path)),
        source,
        tuple(unexpected),
        tuple(notes),
        has_checksum=checksum_note(Path(path)) is None,
    )


def _is_ours(metadata: Mapping[str, str]) -> bool:
    return "class_names" in metadata or "pixel_mean" in metadata


def build_and_load(build: Callable[[], M], state: Mapping[str, Tensor], *, path: Path | str) -> M:
    """Build the network of a file's config, and load the file's weights.

    Raises:
        UserError: as for `build_within_limit` and `load_strictly`.
    """
    model = build_within_limit(build, state, path=path)
    load_strictly(model, state, path=path)
    return model


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], *, path: Path | str) -> None:
    """Copy `state` into `model`; names and shapes must match exactly.

    path: file that `state` was read from, for error messages.

    Raises:
        UserError: names are missing or unexpected, shapes or norm types differ, or values are not
            finite.
    """
    given = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    wanted = {n: tensor for n, tensor in model.state_dict().items() if not n.endswith(COUNTER)}
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    # group norm has the parameters of batch norm, but no running statistics
    if not unexpected and missing and all(".running_" in f".{name}" for name in missing):
        raise UserError(
            f"{path}: weights of a network with group norm, but the model has batch norm "
            f"(missing: {listing(missing)})"
        )
    if not missing and unexpected and all(".running_" in f".{name}" for name in unexpected):
        raise UserError(
            f"{path}: weights of a network with batch norm, but the model has group norm "
            f"(unexpected: {listing(unexpected)})"
        )
    if missing or unexpected:
        parts = (("missing", missing), ("unexpected", unexpected))
        text = "; ".join(f"{what}: {listing(names)}" for what, names in parts if names)
        raise UserError(f"{path}: weights of another network than the model; {text}")
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            raise UserError(
                f"{path}: {name}: expected shape {tuple(tensor.shape)}, "
                f"got {tuple(given[name].shape)}"
            )
        check_float(name, given[name], path)
        bad = int((~given[name].isfinite()).sum())
        if bad:  # a ReLU may turn them into zeros, and the damage would go unnoticed
            raise UserError(
                f"{path}: {name}: expected finite numbers, "
                f"got NaN or infinity in {bad} of {given[name].numel()}"
            )
    # not strict: names and shapes were compared above, except the counters
    model.load_state_dict(given, strict=False)


def check_float(name: str, tensor: Tensor, path: Path | str) -> None:
    """Raise UserError if a file's tensor does not hold floating-point numbers."""
    if tensor.dtype not in _FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{path}: {name}: expected floating-point numbers, got {kind}")


def load_backbone_weights(
    model: Backbone,
    path: Path | str,
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    pixels: PixelOrder = "auto",
    new_classes: bool = False,
) -> WeightsReport:
    """Load a residual network or VGG-16 from our safetensors, or from another project's file.

    The file's origin is found by tensor names: torchvision and timm, detectron2 (.pth, .pkl),
    Caffe2 with MSRA's networks (.pkl), akamaster's CIFAR networks; torchvision alone for VGG-16.
    The file may hold a whole detector; only its backbone is loaded. `fc` is skipped if the model
    has none. The weights are converted so that the model computes the same as in the original
    project. The report lists the skipped tensors and the conversions.

    Args:
        model: changed in place.
        path: weights file.
        pixel_mean: RGB mean of the model's pixel normalisation, on the scale 0..255.
        pixel_std: its RGB standard deviation. The model's input is RGB, (pixels - mean) / std.
        pixels: channel order that the file's network expects. If the file has no mean and std,
            "rgb" means the model's normalisation, and "bgr" means MSRA's (no division by the std).
            "auto": see `pixel_format_of_file`.
        new_classes: keep the model's `fc` if the file has none, or one with another number of
            classes. A note reports this.

    Raises:
        UserError: the file is missing or damaged, tries to run code, holds another network than
            the model, has its bottleneck stride elsewhere, or was made for another pixel mean; or
            a detectron2 file does not specify its pixel format. The model is then unchanged.
    """
    state, metadata = read_state(path)
    ours = PixelFormat("rgb", tuple(pixel_mean), tuple(pixel_std))
    _check_normalisation(metadata, ours, path=path)
    source, names = backbone_names(state, path=path, expected=vgg_weights.expected_file(model))
    vgg_weights.check_family(model, names, path=path)
    if isinstance(model.fc, nn.Identity):
        names = {name: own for name, own in names.items() if not own.startswith("fc.")}
    tensors = {own: state[name] for name, own in names.items()}
    for name, tensor in tensors.items():
        if not name.endswith(COUNTER):
            check_float(name, tensor, path)
    notes: list[str] = []
    if origin_of(state) == MMDETECTION:
        notes.append(
            "an mmdetection file does not specify its pixel format: assumed to be the model's; "
            'weights from "caffe" configs need model.backbone.pixels=bgr'
        )
    if new_classes and not isinstance(model.fc, nn.Identity):
        tensors, fc_notes = _keep_own_fc(tensors, model.fc)
        notes += fc_notes
    theirs = pixel_format_of_file(
        state, metadata, source=source, setting=pixels, ours=ours, path=path
    )
    if _is_ours(metadata):
        in_1x1 = read_stride_in_1x1(metadata, source=path)
        notes += check_stride(model, in_1x1=in_1x1, path=path)
    tensors, adapt_notes = adapt_to_model(
        tensors, model, source=source, theirs=theirs, ours=ours, path=path
    )
    load_strictly(model, tensors, path=path)
    return make_weights_report(
        path,
        metadata,
        source=source,
        unexpected=[name for name in state if name not in names],
        notes=[*notes, *adapt_notes],
    )


def _keep_own_fc(tensors: dict[str, Tensor], fc: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Use the model's own `fc` if the file has none, or one with another number of classes."""
    own = {f"fc.{name}": tensor for name, tensor in fc.state_dict().items()}
    if all(name in tensors and tensors[name].shape == own[name].shape for name in own):
        return tensors, []
    got = f"has {tensors['fc.bias'].numel()} classes" if "fc.bias" in tensors else "is missing"
    note = f"fc {got} in the file: starts from random weights, for {len(own['fc.bias'])} classes"
    return tensors | own, [note]


def load_configured_weights(model: Backbone, config: NetworkConfig) -> list[WeightsReport]:
    """Load a config's `weights`, if it has any; see `load_backbone_weights`."""
    if config.weights is None:
        return []
    report = load_backbone_weights(
        model,
        config.weights,
        pixel_mean=config.pixel_mean,
        pixel_std=config.pixel_std,
        pixels=config.pixels,
        new_classes=True,
    )
    return [report]


def _check_normalisation(
    metadata: Mapping[str, str], ours: PixelFormat, *, path: Path | str
) -> None:
    """Check that the pixel mean and std in our file, if any, equal the model's."""
    for key, got in (("pixel_mean", ours.mean), ("pixel_std", ours.std)):
        if key not in metadata:
            continue
        expected = read_numbers(metadata, key, count=3, source=path)
        if expected != tuple(got):
            raise UserError(
                f"{path}: expected model.backbone.{key}={metadata[key].strip()} (the file's), "
                f"got {list(got)}"
            )


def backbone_names(
    state: Mapping[str, Tensor], *, path: Path | str, expected: str = vgg_weights.RESNET_FILE
) -> tuple[str, dict[str, str]]:
    """Return a file's origin, and a map from its backbone's tensor names to our names.

    expected: the network to be loaded, for the message.

    Raises:
        UserError: the file holds no residual network and no VGG-16 that can be loaded.
    """
    if names := vgg_weights.vgg_names(state):
        return TORCHVISION, names
    if names := caffe2_names(state, path=path):
        return CAFFE2, names
    if names := detectron2_names(state):
        return DETECTRON2, names
    deep = next((p for p in BACKBONE_PREFIXES if f"{p}conv1.0.weight" in state), None)
    if deep is not None:
        raise UserError(
            f"{path}: expected a stem of one convolution (conv1.weight), got a deep stem "
            f"({deep}conv1.0.weight)"
        )
    prefix = next((p for p in BACKBONE_PREFIXES if f"{p}conv1.weight" in state), None)
    if prefix is None:
        kind = origin_of(state)
        got = "" if kind in (UNKNOWN, EMPTY) else f"{kind}: "
        raise UserError(f"{path}: expected {expected}, got {got}{listing(state)}")
    own = {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    if f"{prefix}linear.weight" not in state:
        return TIMM, own
    # The CIFAR networks of akamaster/pytorch_resnet_cifar10 call their last layer "linear".
    return AKAMASTER, {name: re.sub(r"^linear\.", "fc.", plain) for name, plain in own.items()}


def to_torchvision(model: Backbone) -> dict[str, Tensor]:
    """Return a state dict that torchvision's network of this depth loads with strict=True."""
    if isinstance(model, VGG16):
        return vgg_weights.to_torchvision_names(model.state_dict())
    return add_norm_counters(model.state_dict())


def add_norm_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the `num_batches_tracked` buffers, which BatchNorm2d has and FrozenBatchNorm2d lacks."""
    counters = {
        name.replace("running_var", COUNTER): torch.tensor(0)
        for name in state
        if name.endswith("running_var")
    }
    return counters | dict(state)


def listing(names: Iterable[str], limit: int = 5) -> str:
    """Join the first names and count the rest: "a, b and 7 more"; "none" if there is no name."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more
