"""Conversion of detector weights from and to torchvision's Faster and Mask R-CNN.

K classes. Ours: background is the last of K+1 logits, and boxes are predicted for K classes.
torchvision: background is output 0 of logits and boxes, and outputs 1.. are the labels. In its
COCO files the labels are category ids (91 outputs, some never used).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from backbones.weights import COUNTER, add_norm_counters
from backbones.weights_origin import TORCHVISION_DETECTOR
from detection.weights.class_rows import DELTAS as OUR_DELTAS
from detection.weights.class_rows import LOGITS as OUR_LOGITS
from detection.weights.class_rows import MASKS as OUR_MASKS
from detection.weights.class_rows import require_rows
from engine.errors import UserError

# Pairs of (torchvision's prefix, ours) like those of `_prefixes`, of the layers with one output per
# class: in them the order of the rows changes too.
LOGITS = ("roi_heads.box_predictor.cls_score.", OUR_LOGITS)
DELTAS = ("roi_heads.box_predictor.bbox_pred.", OUR_DELTAS)
MASKS = ("roi_heads.mask_predictor.mask_fcn_logits.", OUR_MASKS)
_MAX_CONVS = 64  # as many as our config allows
# torchvision's published COCO files have no ".0" in these names; its models now do.
OLD_NAME = re.compile(r"^(backbone\.fpn\.\w+_blocks\.\d|rpn\.head\.conv)\.(weight|bias)$")
OLD_SUFFIXES = {"backbone": ".0", "rpn": ".0.0"}


def _prefixes(*, has_fpn_norm: bool, num_convs: int) -> tuple[tuple[str, str], ...]:
    """Return the pairs of (torchvision's prefix, ours) of a detector.

    Args:
        has_fpn_norm: version 2: convolutions of the pyramid are followed by norms. Then ours too
            are sequences, as torchvision's always are.
        num_convs: of the box head; 0: version 1.
    """
    fpn, convs = "" if has_fpn_norm else "0.", range(_MAX_CONVS)
    linear: tuple[str, ...] = ("fc6.", "fc7.")
    if num_convs:  # a sequence: the convolutions, a flatten, then pairs of linear layer and ReLU
        linear = tuple(f"{num_convs + 1 + 2 * i}." for i in convs)
    return (
        ("backbone.body.", "backbone."),
        *((f"backbone.fpn.inner_blocks.{i}.{fpn}", f"fpn.inner.{i}.") for i in range(4)),
        *((f"backbone.fpn.layer_blocks.{i}.{fpn}", f"fpn.layer.{i}.") for i in range(4)),
        ("rpn.head.conv.0.0.", "rpn_head.conv."),
        *((f"rpn.head.conv.{i + 1}.0.", f"rpn_head.later_convs.{i}.") for i in convs),
        ("rpn.head.cls_logits.", "rpn_head.objectness."),
        ("rpn.head.bbox_pred.", "rpn_head.deltas."),
        *((f"roi_heads.box_head.{i}.0.", f"box_head.convs.conv{i + 1}.") for i in convs),
        *((f"roi_heads.box_head.{i}.1.", f"box_head.convs.norm{i + 1}.") for i in convs),
        *((f"roi_heads.box_head.{name}", f"box_head.fc{i + 1}.") for i, name in enumerate(linear)),
        LOGITS,
        DELTAS,
        *((f"roi_heads.mask_head.{i}.0.", f"mask_head.convs.conv{i + 1}.") for i in convs),
        *((f"roi_heads.mask_head.{i}.1.", f"mask_head.convs.norm{i + 1}.") for i in convs),
        # torchvision's published file has these older names
        *(
            (f"roi_heads.mask_head.mask_fcn{i + 1}.", f"mask_head.convs.conv{i + 1}.")
            for i in convs
        ),
        ("roi_heads.mask_predictor.conv5_mask.", "mask_head.deconv."),
        MASKS,
    )


def from_torchvision_fasterrcnn(
    state: Mapping[str, Tensor], *, keep_category_ids: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Convert a state dict of torchvision's Faster or Mask R-CNN with FPN, version 1 or 2, to ours.

    keep_category_ids: torchvision's labels (1..) that become our labels 0.., in this order; None
    keeps all labels in torchvision's order.

    Raises:
        UserError: the file has no such label.
    """
    num_outputs = len(state[LOGITS[0] + "bias"])
    labels = range(1, num_outputs) if keep_category_ids is None else keep_category_ids
    unknown = [label for label in labels if not 0 < label < num_outputs]
    if unknown:
        raise UserError(f"category ids: expected 1 to {num_outputs - 1}, got {unknown[0]}")
    prefixes = _prefixes(
        has_fpn_norm="backbone.fpn.inner_blocks.0.1.weight" in state,
        num_convs=_count(state, r"roi_heads\.box_head\.\d+\.0\.weight"),
    )
    ours = {}
    for name, tensor in state.items():
        if name.endswith(COUNTER):  # of batch norm; frozen batch norm has none
            continue
        renamed = _rename(OLD_NAME.sub(_new_name, name), prefixes)
        # logits: background moves from row 0 to the end; boxes and masks lose its rows
        if renamed.startswith(LOGITS[1]):
            tensor = tensor[[*labels, 0]]
        elif renamed.startswith(DELTAS[1]):
            tensor = _take_classes(tensor, labels)
        elif renamed.startswith(MASKS[1]):
            tensor = tensor[list(labels)]
        ours[renamed] = tensor
    return ours


def to_torchvision_fasterrcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our state dict to one that torchvision's model of K+1 outputs loads strictly.

    torchvision's box and mask outputs for background, which it never reads, become zero.
    """
    prefixes = _prefixes(
        has_fpn_norm="fpn.inner.0.1.weight" in state,
        num_convs=_count(state, r"box_head\.convs\.conv\d+\.weight"),
    )
    to_torchvision = [(ours, theirs) for theirs, ours in prefixes]
    theirs = {}
    for name, tensor in state.items():
        if name.endswith(COUNTER):  # added below
            continue
        if name.startswith(LOGITS[1]):
            tensor = tensor.roll(1, dims=0)  # background from the end to row 0
        elif name.startswith(DELTAS[1]):
            tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor])  # four rows per class
        elif name.startswith(MASKS[1]):
            tensor = torch.cat([torch.zeros_like(tensor[:1]), tensor])
        theirs[_rename(name, to_torchvision)] = tensor
    return add_norm_counters(theirs)


def count_outputs(state: Mapping[str, Tensor], path: Path | str) -> int:
    """Return the number of outputs of a torchvision file, background included; check all rows.

    Raises:
        UserError: a layer is missing or has a different number of rows.
    """
    for name in (LOGITS[0] + "bias", DELTAS[0] + "bias"):
        if name not in state or state[name].ndim != 1:
            raise UserError(
                f"{path}: {name}: expected a number for each output of {TORCHVISION_DETECTOR}"
            )
    num_outputs = len(state[LOGITS[0] + "bias"])
    # detectron2 uses some of the same names, but its boxes have no rows for background
    for prefix, rows in ((LOGITS, num_outputs), (DELTAS, 4 * num_outputs), (MASKS, num_outputs)):
        for name, tensor in state.items():
            if name.startswith(prefix[0]):
                require_rows(name, tensor, rows, path)
    return num_outputs


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many tensors have a name of this pattern."""
    return sum(re.fullmatch(pattern, name) is not None for name in state)


def _take_classes(tensor: Tensor, classes: Sequence[int]) -> Tensor:
    """Return the rows of `classes` from a tensor with four rows per class, (4 K, ...)."""
    return tensor.reshape(-1, 4, *tensor.shape[1:])[list(classes)].flatten(0, 1)


def _new_name(old: re.Match[str]) -> str:
    where, parameter = old.groups()
    return f"{where}{OLD_SUFFIXES[where.split('.')[0]]}.{parameter}"


def _rename(name: str, prefixes: Sequence[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name  # unknown name: load_strictly reports it
