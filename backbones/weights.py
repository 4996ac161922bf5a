"""Pretrained weights: read, renamed where another project's names differ, checked, loaded."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.resnet import ResNet
from engine.checkpoint import load_checkpoint, read_safetensors
from engine.errors import UserError

# Where a file keeps the residual network: torchvision's detectors, ours, a bare network.
BACKBONE_PREFIXES = ("backbone.body.", "backbone.", "")
COUNTER = "num_batches_tracked"  # of BatchNorm2d; plays no part in what a network computes


@dataclass(frozen=True)
class WeightsReport:
    """What was loaded, for the log.

    sha256: of the file. source: "resdet" or "torchvision", by the file's metadata. unexpected: the
    file's tensors that the model has no place for. notes: what was changed on the way, a line each.
    """

    path: str
    sha256: str
    source: str
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Say it in words: the file, the notes, what was left out."""
        first = f"weights from {self.path} ({self.source}, sha256 {self.sha256[:12]})"
        left_out = [f"left out: {listing(self.unexpected)}"] if self.unexpected else []
        return [first, *self.notes, *left_out]


def read_state(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict and its metadata (none but in safetensors) without running code in it.

    A file of torch.save may hold the dict itself or have it under "state_dict" or "model". A
    prefix "module." or "model." that all names share is taken off.

    Raises:
        UserError: no such file, a truncated one, or one without a state dict.
    """
    path = Path(path)
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
    else:
        payload = load_checkpoint(path)
        state = payload.get("state_dict", payload.get("model", payload))
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: expected names and tensors, got something else beside or instead")
    for prefix in ("module.", "model."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state, metadata


def report_of(
    path: Path | str,
    metadata: Mapping[str, str],
    *,
    unexpected: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> WeightsReport:
    """Describe a file that was loaded."""
    source = "resdet" if "class_names" in metadata else "torchvision"
    return WeightsReport(str(path), sha256_of(path), source, tuple(unexpected), tuple(notes))


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], *, path: Path | str) -> None:
    """Copy `state` into `model`; every tensor must have its counterpart of the same shape.

    path: where `state` comes from, for messages.

    Raises:
        UserError: names that are missing or left over, another shape, another kind of norm.
    """
    given = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    wanted = {n: tensor for n, tensor in model.state_dict().items() if not n.endswith(COUNTER)}
    missing = [name for name in wanted if name not in given]
    left_over = [name for name in given if name not in wanted]
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
    model.load_state_dict(given, strict=False)  # compared above, all but the counters


def load_backbone_weights(model: ResNet, path: Path | str) -> WeightsReport:
    """Load a residual network from our safetensors, or from a torchvision or timm file.

    The network may lie under "backbone." in a detector's file; the rest of the detector is left
    out. So is `fc` when the model has none. The report names both.

    Raises:
        UserError: the file is missing or truncated, or holds another network than the model.
    """
    state, metadata = read_state(path)
    prefix = next((p for p in BACKBONE_PREFIXES if f"{p}conv1.weight" in state), None)
    if prefix is None:
        raise UserError(f"{path}: expected a residual network (conv1.weight), got {listing(state)}")
    inside, unexpected = {}, []
    for name, tensor in state.items():
        # "linear" is the last layer of the CIFAR nets of akamaster/pytorch_resnet_cifar10.
        own = name.removeprefix(prefix).replace("linear.", "fc.")
        is_surplus_fc = own.startswith("fc.") and isinstance(model.fc, nn.Identity)
        if not name.startswith(prefix) or is_surplus_fc:
            unexpected.append(name)
        else:
            inside[own] = tensor
    load_exactly(model, inside, path=path)
    return report_of(path, metadata, unexpected=unexpected)


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
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(names: Iterable[str], limit: int = 5) -> str:
    """Join the first names, and count the others: "a, b and 7 more"; "none" for no name."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more
