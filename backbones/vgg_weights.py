"""Names of VGG-16's tensors: ours and torchvision's."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from backbones.vgg import STAGES, VGG16
from engine.errors import UserError

FIRST_CONVOLUTION = "conv1_1.weight"
"""The layer that reads the pixels; a residual network's is conv1."""
RESNET_FILE, VGG16_FILE = "a residual network (conv1.weight)", f"VGG-16 ({FIRST_CONVOLUTION})"
_PREFIXES = ("backbone.", "")
_CLASSIFIER = {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc"}


def _torchvision_layers() -> dict[str, str]:
    """Return our name of each of torchvision's layers: {"features.0": "conv1_1", ...}."""
    layers, index = {}, 0
    for stage, (count, _) in enumerate(STAGES, start=1):
        for number in range(1, count + 1):
            layers[f"features.{index}"] = f"conv{stage}_{number}"
            index += 2  # a convolution and its ReLU
        index += 1  # the pooling
    return layers | _CLASSIFIER


_OURS = _torchvision_layers()
_TORCHVISIONS = {ours: theirs for theirs, ours in _OURS.items()}


def vgg_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a map from the tensor names of a file's VGG-16 to ours; {} if it has none.

    The rest of a detector has no entry. Layers that our network does not have keep their names, so
    that loading them fails: VGG-11 to VGG-19 of torchvision differ in them, with batch norm or not.
    """
    for prefix in _PREFIXES:
        names = {n: n.removeprefix(prefix) for n in state if n.startswith(prefix)}
        plain = set(names.values())
        if FIRST_CONVOLUTION in plain:
            return names
        if {"features.0.weight", "classifier.0.weight"} <= plain:
            return {name: _renamed(theirs, _OURS) for name, theirs in names.items()}
    return {}


def to_torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of our VGG-16 as torchvision's."""
    return {_renamed(name, _TORCHVISIONS): tensor for name, tensor in state.items()}


def _renamed(name: str, layers: Mapping[str, str]) -> str:
    layer, _, parameter = name.rpartition(".")
    return f"{layers.get(layer, layer)}.{parameter}"


def expected_file(model: nn.Module) -> str:
    """Return what a file for this network must hold, for messages."""
    return VGG16_FILE if isinstance(model, VGG16) else RESNET_FILE


def check_family(model: nn.Module, names: Mapping[str, str], *, path: Path | str) -> None:
    """Check that a file and the model are both VGG-16, or both residual networks.

    Args:
        model: the network to load the file into.
        names: our tensor names by the file's.
        path: of the file, for the message.

    Raises:
        UserError: they differ.
    """
    first = next((name for name, own in names.items() if own == FIRST_CONVOLUTION), None)
    if (first is not None) != isinstance(model, VGG16):
        got = f"VGG-16 ({first})" if first is not None else RESNET_FILE
        raise UserError(f"{path}: expected {expected_file(model)}, got {got}")
