"""Conversion of detectron2's Faster, Mask and Cascade R-CNN, on C4 or with FPN, to ours.

A anchors on a cell: S sizes x R ratios. K classes. detectron2's background is the last logit, and
its boxes have no rows for background, as ours.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.foreign_weights import (
    DETECTRON2,
    PixelFormat,
    adapt_to_model,
    channel_order_of_file,
    detectron2_names,
    pixel_format_of_file,
    strides_in_1x1,
)
from backbones.weights import COUNTER
from detection.config import BackboneConfig, DetectionConfig
from detection.weights.class_rows import DELTAS, LOGITS, MASKS
from detection.weights.network_keys import Keys

_CLASSES = (
    "roi_heads.box_predictor.cls_score.bias",
    "roi_heads.box_predictor.0.cls_score.bias",  # of a cascade
)
_OBJECTNESS = "proposal_generator.rpn_head.objectness_logits.weight"
_PREFIXES = {
    "proposal_generator.rpn_head.conv.conv0.": "rpn_head.conv.",  # of several
    "proposal_generator.rpn_head.conv.": "rpn_head.conv.",
    "proposal_generator.rpn_head.objectness_logits.": "rpn_head.objectness.",
    "proposal_generator.rpn_head.anchor_deltas.": "rpn_head.deltas.",
    "roi_heads.box_head.fc": "box_head.fc",
    "roi_heads.box_predictor.cls_score.": LOGITS,
    "roi_heads.box_predictor.bbox_pred.": DELTAS,
    "roi_heads.mask_head.deconv.": "mask_head.deconv.",
    "roi_heads.mask_head.predictor.": MASKS,
}
_FPN = re.compile(r"backbone\.fpn_(?P<kind>lateral|output)(?P<level>[2-5])\.(?P<norm>norm\.)?(\w+)")
_RPN_CONV = re.compile(r"proposal_generator\.rpn_head\.conv\.conv(?P<number>[1-9]\d*)\.(\w+)")
_REGION_CONV = re.compile(
    r"roi_heads\.(?P<head>box_head\.conv|mask_head\.mask_fcn)(?P<number>\d+)\.(?P<norm>norm\.)?(\w+)"
)
_STAGE = re.compile(r"roi_heads\.(?P<part>box_head|box_predictor)\.(?P<stage>\d+)\.(?P<layer>.+)")
_FPN_KINDS = {"lateral": "inner", "output": "layer"}
_ANCHORS = re.compile(r"proposal_generator\.anchor_generator\.cell_anchors\.\d+")


def is_detector(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state of detectron2 has the RPN and the box head of a detector."""
    return _OBJECTNESS in state and any(name in state for name in _CLASSES)


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a detectron2 detector, with one mask for each class.

    The pixels, norms and anchors are still detectron2's: see `adapt`. Tensors that our network does
    not have keep their names, so that loading them fails.
    """
    names = detectron2_names(state)
    has_fpn_norm = any((match := _FPN.fullmatch(name)) and match["norm"] for name in state)
    num_classes = next(state[name] for name in _CLASSES if name in state).numel() - 1
    ours = {}
    for name, tensor in state.items():
        if name.endswith(COUNTER) or name in ("pixel_mean", "pixel_std"):
            continue
        if _ANCHORS.fullmatch(name):
            continue
        if name in names:
            ours[f"backbone.{names[name]}"] = tensor
            continue
        own = _own_name(name, has_fpn_norm=has_fpn_norm)
        if own.startswith(MASKS) and tensor.shape[:1] == (1,):
            # class-agnostic masks: the same for every class
            tensor = tensor.repeat(num_classes, *[1] * (tensor.ndim - 1))
        ours[own] = tensor
    return ours


def _own_name(name: str, *, has_fpn_norm: bool) -> str:
    if match := _FPN.fullmatch(name):
        # with a norm, our convolution and norm are the two parts of a sequence
        part = ("1." if match["norm"] else "0.") if has_fpn_norm else ""
        return f"fpn.{_FPN_KINDS[match['kind']]}.{int(match['level']) - 2}.{part}{match[4]}"
    if match := _STAGE.fullmatch(name):
        stage = int(match["stage"])
        prefix = f"later_stages.{stage - 1}." if stage else ""
        of_one = f"roi_heads.{match['part']}.{match['layer']}"
        return prefix + _own_name(of_one, has_fpn_norm=has_fpn_norm)
    if match := _RPN_CONV.fullmatch(name):
        return f"rpn_head.later_convs.{int(match['number']) - 1}.{match[2]}"
    if match := _REGION_CONV.fullmatch(name):
        layer = "norm" if match["norm"] else "conv"
        return f"{match['head'].partition('.')[0]}.convs.{layer}{match['number']}.{match[4]}"
    for theirs, own in _PREFIXES.items():
        if name.startswith(theirs):
            return own + name.removeprefix(theirs)
    return name


def needed_keys(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    config: DetectionConfig,
    *,
    path: Path | str,
) -> Keys:
    """Return the keys of a detectron2 file's network that the shapes do not show.

    Anchors are not rounded; their sizes and ratios are in the buffers of some files. Files without
    `pixel_mean` (since 2021) do not say how they normalise pixels: without a setting, the values
    are those of networks that come from MSRA's, as the model zoo's do.
    """
    keys: Keys = {"model.rpn.round_anchors": False, **_anchor_keys(state)}
    backbone = config.model.backbone
    order = channel_order_of_file(state, metadata, source=DETECTRON2, setting=backbone.pixels)
    if order is None:
        keys["model.backbone.pixels"] = "bgr"
        keys["model.backbone.stride_in_1x1"] = True
    elif any(name.endswith("res2.0.conv3.weight") for name in state):  # basic blocks have no 1x1
        pixels = pixel_format(state, metadata, config.model.backbone, path=path)
        keys["model.backbone.stride_in_1x1"] = strides_in_1x1(DETECTRON2, pixels)
    return keys


def pixel_format(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    config: BackboneConfig,
    *,
    path: Path | str,
) -> PixelFormat:
    """Return the pixel format that a detectron2 file's network expects."""
    return pixel_format_of_file(
        state,
        metadata,
        source=DETECTRON2,
        setting=config.pixels,
        ours=PixelFormat("rgb", config.pixel_mean, config.pixel_std),
        path=path,
    )


def _anchor_keys(state: Mapping[str, Tensor]) -> Keys:
    """Return the anchors' sizes and ratios from the buffers of a file; {} if it has none."""
    levels = [tensor for name, tensor in state.items() if _ANCHORS.fullmatch(name)]
    if not levels or any(level.ndim != 2 or level.shape[1] != 4 for level in levels):
        return {}
    x1, y1, x2, y2 = torch.cat(levels).double().unbind(1)
    widths, heights = x2 - x1, y2 - y1
    columns = {
        "model.rpn.anchor_sizes": (widths * heights).sqrt(),
        "model.rpn.anchor_ratios": heights / widths,
    }
    # float32 corners are exact to about 1e-5 of a side
    return {
        key: tuple(dict.fromkeys(round(value, 3) for value in column.tolist()))
        for key, column in columns.items()
    }


def adapt(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    *,
    theirs: PixelFormat,
    config: DetectionConfig,
    path: Path | str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert a renamed detector to our pixels and to our order of anchors.

    Args:
        tensors: as from `to_our_names`.
        model: the detector, not changed.
        theirs: pixel format that the file's network expects.
        config: the run's config.
        path: of the file, for messages.

    Returns:
        the converted tensors, and notes.

    Raises:
        UserError: the strides or the pixel means differ.
    """
    prefix = "backbone."
    backbone = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    pixels = config.model.backbone
    backbone, notes = adapt_to_model(
        backbone,
        model,
        source=DETECTRON2,
        theirs=theirs,
        ours=PixelFormat("rgb", pixels.pixel_mean, pixels.pixel_std),
        path=path,
    )
    heads = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    if config.model.neck.kind == "c4":  # on a pyramid each level has a single size
        sizes, ratios = len(config.model.rpn.anchor_sizes), len(config.model.rpn.anchor_ratios)
        for name, tensor in heads.items():
            if name.startswith(("rpn_head.objectness.", "rpn_head.deltas.")):
                heads[name] = _by_ratio(tensor, sizes, ratios)
    return {f"{prefix}{name}": tensor for name, tensor in backbone.items()} | heads, notes


def _by_ratio(tensor: Tensor, sizes: int, ratios: int) -> Tensor:
    """Reorder rows from their order of anchors (size, ratio) to ours (ratio, size).

    tensor: (S * R * n, ...), n rows for each anchor; any other is returned for loading to refuse.
    """
    if tensor.ndim == 0 or len(tensor) % (sizes * ratios):
        return tensor
    reordered: Tensor = tensor.unflatten(0, (sizes, ratios, -1)).transpose(0, 1).flatten(0, 2)
    return reordered
