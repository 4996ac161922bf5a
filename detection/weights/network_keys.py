"""Config keys of the network that a file's tensors belong to, derived from names and shapes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.features import scaled_channels
from backbones.resnet import KINDS, PLAIN_KINDS, WIDTHS
from backbones.vgg_weights import FIRST_CONVOLUTION
from detection.config import DetectionConfig, RPNConfig
from engine.errors import UserError

_LAST_WIDTH = WIDTHS[-1]
"""Channels inside the last stage of residual networks; conv5_3 of VGG-16 has as many."""
_PLAIN = {residual: plain for plain, residual in PLAIN_KINDS.items()}
Keys = dict[str, Any]
"""Values by the path of their key: {"model.roi.hidden_dim": 1024}."""


def network_keys(state: Mapping[str, Tensor]) -> Keys:
    """Return the keys of the detector that has these tensors, by our names.

    Only what names and shapes show: {} if the tensors are not those of a whole detector. The rows
    of classes have no key, nor has a network that is none of `KINDS` or `PLAIN_KINDS`.
    """
    is_vgg = f"backbone.{FIRST_CONVOLUTION}" in state
    if not is_vgg and "backbone.conv1.weight" not in state:
        return {}
    if "rpn_head.objectness.weight" not in state:
        return {}
    has_fpn = any(name.startswith("fpn.") for name in state)
    has_masks = any(name.startswith("mask_head.") for name in state)
    keys: Keys = {
        "task": "segmentation" if has_masks else "detection",
        "model.backbone.kind": "vgg16" if is_vgg else _backbone_kind(state),
        "model.backbone.norm": None if is_vgg else _backbone_norm(state),
        "model.backbone.width_multiplier": _backbone_width(state),
        "model.neck.kind": "fpn" if has_fpn else "c4",
        "model.rpn.num_convs": 1 + _count(state, "rpn_head.later_convs."),
        "model.roi.num_convs": _count(state, "box_head.convs.conv"),
        "model.roi.norm": _norm(state, "box_head.convs.norm1."),
        "model.roi.class_agnostic_boxes": _has_one_box(state),
        "model.roi.stages": 1 + _count(state, "later_stages."),
        "model.roi.global_context": _has_context(state),
    }
    if has_fpn:
        keys |= _fpn_keys(state)
    if has_masks:
        keys["model.mask.hidden_dim"] = _size(state, "mask_head.deconv.weight", 1)
        keys["model.mask.norm"] = _norm(state, "mask_head.convs.norm1.")
    return {key: value for key, value in keys.items() if value is not None}


def _fpn_keys(state: Mapping[str, Tensor]) -> Keys:
    norm = _norm(state, "fpn.inner.0.1.")
    convolution = "fpn.inner.0.weight" if norm == "none" else "fpn.inner.0.0.weight"
    keys: Keys = {
        "model.neck.channels": _size(state, convolution, 0),
        "model.neck.norm": norm,
        "model.roi.conv_dim": _size(state, "box_head.convs.conv1.weight", 0),
        "model.roi.num_fcs": _count(state, "box_head.fc") or None,
        "model.roi.hidden_dim": _size(state, "box_head.fc1.weight", 0),
    }
    channels = keys["model.roi.conv_dim"] or keys["model.neck.channels"]
    inputs = _size(state, "box_head.fc1.weight", 1)
    if channels and inputs:
        keys["model.roi.resolution"] = round((inputs / channels) ** 0.5)
    if any(name.startswith("mask_head.") for name in state):
        keys["model.mask.num_convs"] = _count(state, "mask_head.convs.conv")
    return keys


def _norm(state: Mapping[str, Tensor], prefix: str) -> str:
    """Return the kind of the norm below a prefix: batch, group, or none if there is none."""
    if f"{prefix}weight" not in state:
        return "none"
    return "batch" if f"{prefix}running_mean" in state else "group"


def _backbone_norm(state: Mapping[str, Tensor]) -> str:
    return "frozen" if "backbone.bn1.running_mean" in state else "group"


def _backbone_width(state: Mapping[str, Tensor]) -> float | None:
    """Return the width multiplier that gives the last stage's convolutions their channels."""
    layers = ("backbone.layer4.0.conv1.weight", "backbone.conv5_3.weight")
    channels = next((size for name in layers if (size := _size(state, name, 0))), None)
    return None if channels is None else channels / _LAST_WIDTH


def _has_one_box(state: Mapping[str, Tensor]) -> bool | None:
    """Return whether one box is predicted for all classes; None: there is one class, or unknown."""
    logits, deltas = (
        _size(state, f"box_predictor.{layer}.bias", 0) for layer in ("class_logits", "deltas")
    )
    if logits is None or deltas is None or logits <= 2:
        return None
    return deltas == 4


def _has_context(state: Mapping[str, Tensor]) -> bool | None:
    """Return whether the output layers take the image's feature beside the RoI's; None: unknown."""
    inputs = _size(state, "box_predictor.class_logits.weight", 1)
    last = "conv3" if "backbone.layer4.0.conv3.weight" in state else "conv2"
    # what feeds the output layers: with a pyramid fc1 or a later layer of as many outputs, with c4
    # conv5 or VGG-16's fc7
    layers = ("box_head.fc1.weight", f"backbone.layer4.0.{last}.weight", "backbone.fc7.weight")
    features = next((size for name in layers if (size := _size(state, name, 0))), None)
    if features is None or inputs not in (features, 2 * features):
        return None
    return inputs == 2 * features


def _backbone_kind(state: Mapping[str, Tensor]) -> str | None:
    layers = tuple(_count(state, f"backbone.layer{number}.") for number in range(1, 5))
    has_bottlenecks = "backbone.layer1.0.conv3.weight" in state
    has_projections = any(".downsample." in name for name in state)
    for kind, expected in KINDS.items():
        if layers == expected and has_bottlenecks != (kind in ("resnet18", "resnet34")):
            return kind if has_projections else _PLAIN.get(kind)
    return None


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many different names come directly after a prefix."""
    below = (name.removeprefix(prefix) for name in state if name.startswith(prefix))
    return len({name.partition(".")[0] for name in below})


def _size(state: Mapping[str, Tensor], name: str, dim: int) -> int | None:
    """Return a side of a tensor; None if it is missing or has fewer dimensions."""
    tensor = state.get(name)
    return tensor.shape[dim] if tensor is not None and tensor.ndim > dim else None


def differing(keys: Keys, config: DetectionConfig) -> list[str]:
    """Return the `key=value` overrides that give a config the values of `keys`."""
    return [
        f"{key}={_text(value)}" for key, value in keys.items() if value_at(config, key) != value
    ]


def check_keys(
    state: Mapping[str, Tensor],
    config: DetectionConfig,
    more: Keys,
    *,
    path: Path | str,
    trained_with: DetectionConfig | None = None,
) -> None:
    """Check that a file's network is the config's.

    Args:
        state: by our names.
        config: the run's config.
        more: further keys that the network needs, which shapes do not show.
        path: of the file, for messages.
        trained_with: config of the file's run, which has the anchors; None if it is not known.

    Raises:
        UserError: they differ; the message has the overrides that make the network fit.
    """
    overrides = differing(network_keys(state) | more, config)
    num_anchors = _size(state, "rpn_head.objectness.weight", 0)
    if num_anchors is not None and network_keys(state):
        likely = RPNConfig() if trained_with is None else trained_with.model.rpn
        overrides += _anchor_overrides(num_anchors, config, state, likely=likely)
    if overrides:
        raise UserError(
            f"{path}: expected the config's network, got another; it fits with "
            f"{' '.join(overrides)}"
        )


def _anchor_overrides(
    num_anchors: int, config: DetectionConfig, state: Mapping[str, Tensor], *, likely: RPNConfig
) -> list[str]:
    """Return what to set for a number of anchors on each cell: likely values, or the keys."""
    is_fpn = network_keys(state)["model.neck.kind"] == "fpn"
    rpn = config.model.rpn

    def count(each: RPNConfig) -> int:
        return len(each.anchor_ratios) * (1 if is_fpn else len(each.anchor_sizes))

    if count(rpn) == num_anchors:
        return []
    if count(likely) == num_anchors:
        names = ("anchor_ratios",) if is_fpn else ("anchor_sizes", "anchor_ratios")
        return [f"model.rpn.{name}={_text(getattr(likely, name))}" for name in names]
    where = "model.rpn.anchor_ratios" if is_fpn else "model.rpn.anchor_sizes and anchor_ratios"
    return [f"{where} that make {num_anchors} anchors on a cell (not {count(rpn)})"]


def value_at(config: DetectionConfig, key: str) -> Any:
    """Return a config's value of a key, comparable with those of `network_keys`."""
    if key == "model.roi.resolution":
        return config.model.roi.resolution_with("fpn", config.model.backbone.kind)  # has fc1
    if key == "model.backbone.norm":  # batch norm has the tensors of frozen batch norm
        return "group" if config.model.backbone.norm == "group" else "frozen"
    if key == "model.backbone.width_multiplier":  # as far as the last stage's channels show it
        multiplier = config.model.backbone.width_multiplier
        return scaled_channels(_LAST_WIDTH, multiplier) / _LAST_WIDTH
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _text(value: Any) -> str:
    """Return a value as on a command line: fpn, true, [0.5,1,2]."""
    if isinstance(value, tuple | list):
        return f"[{','.join(f'{each:g}' for each in value)}]"
    return value if isinstance(value, str) else json.dumps(value)
