"""Pretrained weights: read, changed where another project's conventions differ, checked, loaded."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from backbones.bounded import build_bounded
from backbones.config import NetworkConfig
from backbones.file_kinds import EMPTY, MMDETECTION, UNKNOWN, kind_of
from backbones.foreign_weights import (
    CAFFE2,
    DETECTRON2,
    PixelFormat,
    PixelOrder,
    absorb_biases,
    caffe2_names,
    check_stride,
    complete_norms,
    detectron2_names,
    fold_pixels,
    pixels_of_file,
    read_pickle,
)
from backbones.metadata import numbers_of, stride_in_1x1_of
from backbones.resnet import ResNet
from engine.checkpoint import (
    is_tensor_dict,
    load_checkpoint,
    read_safetensors,
    weights_of_checkpoint,
)
from engine.checksum import checksum_note
from engine.errors import UserError
from engine.paths import is_folder, open_file

_WRAPPERS, _MAX_WRAPPERS = ("state_dict", "model", "model_state_dict"), 3
"""Where training scripts put a state dict."""
M = TypeVar("M", bound=nn.Module)

# Where a file keeps the residual network: torchvision's detectors, ours, a bare network.
BACKBONE_PREFIXES = ("backbone.body.", "backbone.", "")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTER = "num_batches_tracked"  # of BatchNorm2d; plays no part in what a network computes
RESDET, TORCHVISION, TIMM, AKAMASTER = "resdet", "torchvision", "torchvision or timm", "akamaster"


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded, for the log.

    sha256: of the file. source: "resdet" by the file's metadata, else by its names: "torchvision"
    (detectors), "torchvision or timm", "detectron2", "Caffe2 (MSRA)" or "akamaster". unexpected:
    the file's tensors that the model has no place for. notes: what was changed on the way, and
    what was found to agree though names and shapes do not tell; a line each. has_checksum: the
    file holds one, which was right.
    """

    path: str
    sha256: str
    source: str
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    has_checksum: bool = True

    def lines(self) -> list[str]:
        """Say it in words: the file, the notes, what was left out."""
        checked = "" if self.has_checksum else ", no checksum in it"
        first = f"weights from {self.path} ({self.source}, sha256 {self.sha256[:12]}{checked})"
        left_out = [f"left out: {listing(self.unexpected)}"] if self.unexpected else []
        return [first, *self.notes, *left_out]


def network_metadata(
    task: str, class_names: Sequence[str], network: NetworkConfig, *, config: str
) -> dict[str, str]:
    """Return what lies beside the weights of a network that sees one class an image.

    config: the run's, as JSON.
    """
    return {
        "task": task,
        "class_names": json.dumps(class_names),
        "pixel_mean": json.dumps(network.pixel_mean),
        "pixel_std": json.dumps(network.pixel_std),
        "config": config,
    }


def read_state(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict and its metadata ({} when there is none) without running code in it.

    A file of torch.save may hold the dict itself or have it under one of `_WRAPPERS`; a
    pickle (.pkl) of numpy arrays, the dict itself or one under "model" or "blobs". Of a run's
    checkpoint with averaged weights these are taken. Prefixes "module." and "model." that all names
    share are taken off.

    Raises:
        UserError: no such file, a truncated one, or one without a state dict.
    """
    path = Path(path)
    if is_folder(path):
        raise UserError(f"{path}: expected a file of weights, such as a run's model.safetensors")
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
    elif path.suffix == ".pkl":
        state, metadata = read_pickle(path)
    else:
        payload = load_checkpoint(path)
        state, metadata = weights_of_checkpoint(payload) or (_unwrapped(payload), {})
    if not is_tensor_dict(state):
        others = [
            f"{name!r:.40} ({type(value).__name__})"
            for name, value in state.items()
            if not isinstance(value, Tensor) or not isinstance(name, str)
        ]
        raise UserError(
            f"{path}: expected names and tensors, got something else beside or instead: "
            f"{listing(others)}"
        )
    while {name[: name.find(".") + 1] for name in state} in ({"module."}, {"model."}):
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return state, metadata


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Return the innermost of the dicts that lie in each other under one of `_WRAPPERS`."""
    for _ in range(_MAX_WRAPPERS):
        inner = (state.get(key) for key in _WRAPPERS)
        state = next((value for value in inner if isinstance(value, dict)), state)
    return state


def report_of(
    path: Path | str,
    metadata: Mapping[str, str],
    *,
    source: str = TORCHVISION,
    unexpected: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> WeightsReport:
    """Describe a file that was loaded; source: whose it is when its metadata is not ours."""
    source = RESDET if _is_ours(metadata) else source
    return WeightsReport(
        str(path),
        sha256_of(path),
        source,
        tuple(unexpected),
        tuple(notes),
        has_checksum=checksum_note(Path(path)) is None,
    )


def _is_ours(metadata: Mapping[str, str]) -> bool:
    return "class_names" in metadata or "pixel_mean" in metadata


def build_loaded(build: Callable[[], M], state: Mapping[str, Tensor], *, path: Path | str) -> M:
    """Build the network that a file's config asks for, and load the file's weights.

    Raises:
        UserError: as for `build_bounded` and `load_exactly`.
    """
    model = build_bounded(build, state, path=path)
    load_exactly(model, state, path=path)
    return model


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], *, path: Path | str) -> None:
    """Copy `state` into `model`; every tensor must have its counterpart of the same shape.

    path: where `state` comes from, for messages.

    Raises:
        UserError: names that are missing or left over, another shape, another kind of norm,
            numbers that are not finite.
    """
    given = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    wanted = {n: tensor for n, tensor in model.state_dict().items() if not n.endswith(COUNTER)}
    missing = [name for name in wanted if name not in given]
    left_over = [name for name in given if name not in wanted]
    if not left_over and missing and all(".running_" in f".{name}" for name in missing):
        raise UserError(
            f"{path}: weights of a network with group norm, but the model has batch norm "
            f"(missing: {listing(missing)})"
        )
    if not missing and left_over and all(".running_" in f".{name}" for name in left_over):
        raise UserError(
            f"{path}: weights of a network with batch norm, but the model has group norm "
            f"(no place for {listing(left_over)})"
        )
    if missing or left_over:
        parts = (("missing", missing), ("left over", left_over))
        text = "; ".join(f"{what}: {listing(names)}" for what, names in parts if names)
        raise UserError(f"{path}: weights of another network than the model; {text}")
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            raise UserError(
                f"{path}: {name}: expected shape {tuple(tensor.shape)}, "
                f"got {tuple(given[name].shape)}"
            )
        _check_float(name, given[name], path)
        bad = int((~given[name].isfinite()).sum())
        if bad:  # a rectifier may make zeros of them, and nobody would notice
            raise UserError(
                f"{path}: {name}: expected finite numbers, "
                f"got NaN or infinity in {bad} of {given[name].numel()}"
            )
    model.load_state_dict(given, strict=False)  # compared above, all but the counters


def _check_float(name: str, tensor: Tensor, path: Path | str) -> None:
    if tensor.dtype not in _FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{path}: {name}: expected floating-point numbers, got {kind}")


def load_backbone_weights(
    model: ResNet,
    path: Path | str,
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    pixels: PixelOrder = "auto",
    new_classes: bool = False,
) -> WeightsReport:
    """Load a residual network from our safetensors, or from another project's file.

    Told apart by names: torchvision's and timm's files, detectron2's (.pth, .pkl), Caffe2's of
    MSRA's networks (.pkl), akamaster's CIFAR nets. The network may lie in a detector's file; the
    rest of the detector is left out. So is `fc` when the model has none. The report names both,
    and notes what was changed so that the model computes what the file's own project computes.

    pixel_mean, pixel_std: of red, green and blue on the scale 0..255; the model's pixels are RGB,
    less the mean, over the std. pixels: the order of channels that the file's network takes;
    "rgb" means normalised like the model's, "bgr" not divided (MSRA), where a file holds no
    numbers of its own; "auto" as `pixels_of_file` tells. new_classes: the model's `fc` stays as it
    is where the file's is missing or of another number of classes, and a note says so.

    Raises:
        UserError: the file is missing or damaged, wants to run code, holds another network than
            the model, strides elsewhere, or was made for another pixel mean; one of detectron2
            does not tell its pixels. The model is as it was.
    """
    state, metadata = read_state(path)
    ours = PixelFormat("rgb", tuple(pixel_mean), tuple(pixel_std))
    _check_normalisation(metadata, ours, path=path)
    source, names = backbone_names(state, path=path)
    if isinstance(model.fc, nn.Identity):
        names = {name: own for name, own in names.items() if not own.startswith("fc.")}
    tensors = {own: state[name] for name, own in names.items()}
    for name, tensor in tensors.items():
        if not name.endswith(COUNTER):
            _check_float(name, tensor, path)
    notes: list[str] = []
    if kind_of(state) == MMDETECTION:
        notes.append(
            "an mmdetection file does not say which pixels it takes: taken as the model's; those "
            'of its "caffe" configs take model.backbone.pixels=bgr'
        )
    if new_classes and not isinstance(model.fc, nn.Identity):
        tensors, notes = _own_classes(tensors, model.fc)
    theirs = pixels_of_file(state, metadata, source=source, setting=pixels, ours=ours, path=path)
    if source == CAFFE2:
        tensors, norm_notes = complete_norms(tensors, model)
        notes += norm_notes
    if _is_ours(metadata):
        in_1x1 = stride_in_1x1_of(metadata, source=path)
        notes += check_stride(model, in_1x1=in_1x1, path=path)
    if source in (CAFFE2, DETECTRON2):
        tensors, bias_notes = absorb_biases(tensors)
        in_1x1 = source == CAFFE2 or theirs.has_unit_std
        notes += [*bias_notes, *check_stride(model, in_1x1=in_1x1, path=path)]
    conv1, pixel_notes = fold_pixels(tensors["conv1.weight"], theirs=theirs, ours=ours, path=path)
    load_exactly(model, tensors | {"conv1.weight": conv1}, path=path)
    return report_of(
        path,
        metadata,
        source=source,
        unexpected=[name for name in state if name not in names],
        notes=[*notes, *pixel_notes],
    )


def _own_classes(tensors: dict[str, Tensor], fc: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Take the model's own `fc` where the file has none, or one of another number of classes."""
    own = {f"fc.{name}": tensor for name, tensor in fc.state_dict().items()}
    if all(name in tensors and tensors[name].shape == own[name].shape for name in own):
        return tensors, []
    got = f"is of {tensors['fc.bias'].numel()} classes" if "fc.bias" in tensors else "is not there"
    return tensors | own, [f"fc {got}: the model's, of {len(own['fc.bias'])}, starts at random"]


def load_configured_weights(model: ResNet, config: NetworkConfig) -> list[WeightsReport]:
    """Load the weights that a config names, if it names any; see `load_backbone_weights`."""
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
    """Compare our file's pixel mean and std, where it has them, with the model's."""
    for key, got in (("pixel_mean", ours.mean), ("pixel_std", ours.std)):
        if key not in metadata:
            continue
        expected = numbers_of(metadata, key, count=3, source=path)
        if expected != tuple(got):
            raise UserError(
                f"{path}: expected model.backbone.{key}={metadata[key].strip()} (the file's), "
                f"got {list(got)}"
            )


def backbone_names(state: Mapping[str, Tensor], *, path: Path | str) -> tuple[str, dict[str, str]]:
    """Tell whose a file is, and our name of each tensor of its residual network by its own.

    Raises:
        UserError: it holds no residual network that can be loaded.
    """
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
        kind = kind_of(state)
        told = "" if kind in (UNKNOWN, EMPTY) else f"{kind}: "
        raise UserError(
            f"{path}: expected a residual network (conv1.weight), got {told}{listing(state)}"
        )
    own = {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    if f"{prefix}linear.weight" not in state:
        return TIMM, own
    # The CIFAR nets of akamaster/pytorch_resnet_cifar10 name their last layer so.
    return AKAMASTER, {name: re.sub(r"^linear\.", "fc.", plain) for name, plain in own.items()}


def to_torchvision(model: ResNet) -> dict[str, Tensor]:
    """Return the state dict that torchvision's network of this depth loads strictly."""
    return with_counters(model.state_dict())


def with_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the counters that BatchNorm2d has and FrozenBatchNorm2d does not."""
    counters = {
        name.replace("running_var", COUNTER): torch.tensor(0)
        for name in state
        if name.endswith("running_var")
    }
    return counters | dict(state)


def sha256_of(path: Path | str) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def listing(names: Iterable[str], limit: int = 5) -> str:
    """Join the first names, and count the others: "a, b and 7 more"; "none" for no name."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more
