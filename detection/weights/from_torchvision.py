"""Loading of detector weights, and conversion from and to torchvision's Faster and Mask R-CNN.

K classes. Ours: background is the last of K+1 logits, and boxes are predicted for K classes.
torchvision: background is output 0 of logits and boxes, and outputs 1.. are the labels. In its
COCO files the labels are category ids (91 outputs, some never used).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.metadata import read_class_names
from backbones.weights import (
    COUNTER,
    WeightsReport,
    add_norm_counters,
    backbone_names,
    listing,
    load_strictly,
    make_weights_report,
    read_state,
)
from backbones.weights_origin import OURS, TORCHVISION, origin_of
from engine.errors import UserError

# Pairs of (torchvision's prefix, ours). In the layers with one output per class (LOGITS, DELTAS,
# MASKS) the order of the rows changes too.
LOGITS = ("roi_heads.box_predictor.cls_score.", "box_predictor.class_logits.")
DELTAS = ("roi_heads.box_predictor.bbox_pred.", "box_predictor.deltas.")
MASKS = ("roi_heads.mask_predictor.mask_fcn_logits.", "mask_head.logits.")
PREFIXES = (
    ("backbone.body.", "backbone."),
    *((f"backbone.fpn.inner_blocks.{i}.0.", f"fpn.inner.{i}.") for i in range(4)),
    *((f"backbone.fpn.layer_blocks.{i}.0.", f"fpn.layer.{i}.") for i in range(4)),
    ("rpn.head.conv.0.0.", "rpn_head.conv."),
    ("rpn.head.cls_logits.", "rpn_head.objectness."),
    ("rpn.head.bbox_pred.", "rpn_head.deltas."),
    ("roi_heads.box_head.fc6.", "box_head.fc1."),
    ("roi_heads.box_head.fc7.", "box_head.fc2."),
    LOGITS,
    DELTAS,
    *((f"roi_heads.mask_head.{i}.0.", f"mask_head.convs.conv{i + 1}.") for i in range(4)),
    # torchvision's published file has these older names
    *((f"roi_heads.mask_head.mask_fcn{i + 1}.", f"mask_head.convs.conv{i + 1}.") for i in range(4)),
    ("roi_heads.mask_predictor.conv5_mask.", "mask_head.deconv."),
    MASKS,
)
# torchvision's published COCO files have no ".0" in these names; its models now do.
OLD_NAME = re.compile(r"^(backbone\.fpn\.\w+_blocks\.\d|rpn\.head\.conv)\.(weight|bias)$")
OLD_SUFFIXES = {"backbone": ".0", "rpn": ".0.0"}


def from_torchvision_fasterrcnn(
    state: Mapping[str, Tensor], *, keep_category_ids: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Convert a state dict of torchvision's Faster or Mask R-CNN with FPN to ours.

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
    ours = {}
    for name, tensor in state.items():
        if name.endswith(COUNTER):  # of batch norm; frozen batch norm has none
            continue
        renamed = _rename(OLD_NAME.sub(_new_name, name), PREFIXES)
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
    to_torchvision = [(ours, theirs) for theirs, ours in PREFIXES]
    theirs = {}
    for name, tensor in state.items():
        if name.startswith(LOGITS[1]):
            tensor = tensor.roll(1, dims=0)  # background from the end to row 0
        elif name.startswith(DELTAS[1]):
            tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor])  # four rows per class
        elif name.startswith(MASKS[1]):
            tensor = torch.cat([torch.zeros_like(tensor[:1]), tensor])
        theirs[_rename(name, to_torchvision)] = tensor
    return add_norm_counters(theirs)


def load_detector_weights(
    model: nn.Module,
    path: Path | str,
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> WeightsReport:
    """Load a whole detector: our model.safetensors, or torchvision's Faster or Mask R-CNN with FPN.

    class_names, category_ids: those of the model's labels 0..K-1. The classes of our files are
    matched by name; rows in another order are reordered. torchvision's files have no class names.
    If a file has K+1 outputs, they are taken in order; if its last output is the largest category
    id, outputs are taken by category id. torchvision's COCO_V1 files were trained with a norm
    epsilon of 0 and RoIAlign without the half-pixel correction
    (`model.backbone.norm_eps=1e-12 model.roi.aligned=false model.mask.aligned=false`).

    Raises:
        UserError: the classes differ, or the file is bad or of another network.
    """
    state, metadata = read_state(path)
    kind = origin_of(state)
    if kind not in (OURS, TORCHVISION):
        raise _no_detector(state, kind, path)
    if kind == TORCHVISION:
        num_outputs = _check_rows(state, path)
        if num_outputs == len(class_names) + 1:
            state = from_torchvision_fasterrcnn(state)
            note = "no class names in a torchvision file: outputs taken in order"
        elif num_outputs == max(category_ids) + 1:
            state = from_torchvision_fasterrcnn(state, keep_category_ids=category_ids)
            note = "no class names in a torchvision file: outputs taken by category id"
        else:
            raise UserError(
                f"{path}: expected {len(class_names) + 1} outputs (background, "
                f"{listing(class_names)}), got {num_outputs}"
            )
        notes = [note]
    else:
        state, notes = _order_by_name(state, metadata, class_names=class_names, path=path)
    load_strictly(model, state, path=path)
    return make_weights_report(path, metadata, notes=notes)


def _no_detector(state: Mapping[str, Tensor], kind: str, path: Path | str) -> UserError:
    """Return the error for a file that is no detector, with advice if its backbone can be used."""
    advice = f"; only its backbone can be loaded, by model.backbone.weights={path}"
    try:
        backbone_names(state, path=path)
    except UserError:
        advice = ""
    return UserError(
        f"{path}: expected a detector of ours (model.safetensors) or {TORCHVISION}, got {kind}"
        f"{advice}"
    )


def _check_rows(state: Mapping[str, Tensor], path: Path | str) -> int:
    """Return the number of outputs in a torchvision file, after checking the rows of each layer.

    Raises:
        UserError: a layer is missing or has a different number of rows.
    """
    for name in (LOGITS[0] + "bias", DELTAS[0] + "bias"):
        if name not in state or state[name].ndim != 1:
            raise UserError(f"{path}: {name}: expected a number for each output of {TORCHVISION}")
    num_outputs = len(state[LOGITS[0] + "bias"])
    # detectron2 uses some of the same names, but its boxes have no rows for background
    for prefix, rows in ((LOGITS, num_outputs), (DELTAS, 4 * num_outputs), (MASKS, num_outputs)):
        _require_rows(state, prefix[0], rows, path)
    return num_outputs


def _require_rows(state: Mapping[str, Tensor], prefix: str, rows: int, path: Path | str) -> None:
    for name, tensor in state.items():
        if prefix in name and tensor.shape[:1] != (rows,):
            raise UserError(f"{path}: {name}: expected {rows} rows, got {tuple(tensor.shape)}")


def _order_by_name(
    state: dict[str, Tensor],
    metadata: Mapping[str, str],
    *,
    class_names: Sequence[str],
    path: Path | str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Reorder the class-wise rows of our file to the model's classes; return state and notes."""
    if "class_names" not in metadata:
        raise UserError(f"{path}: expected class_names in the metadata of a detector, got none")
    in_file = list(read_class_names(metadata, source=path))
    if sorted(in_file) != sorted(class_names):
        raise UserError(
            f"{path}: classes differ; only in the file: "
            f"{listing(n for n in in_file if n not in class_names)}; only in the data: "
            f"{listing(n for n in class_names if n not in in_file)}"
        )
    if in_file == list(class_names):
        return state, []
    order = [in_file.index(name) for name in class_names]  # row in the file of each of our labels
    for prefix, rows in ((LOGITS, 1 + len(order)), (DELTAS, 4 * len(order)), (MASKS, len(order))):
        _require_rows(state, prefix[1], rows, path)
    state = dict(state)
    for name, tensor in state.items():
        if LOGITS[1] in name:  # `in`, not startswith: names of later stages have a prefix
            state[name] = tensor[[*order, len(order)]]  # background stays last
        elif name.startswith(MASKS[1]):
            state[name] = tensor[order]
        elif DELTAS[1] in name:
            state[name] = _take_classes(tensor, order)
    return state, ["the file's classes are in another order: rows reordered by name"]


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
