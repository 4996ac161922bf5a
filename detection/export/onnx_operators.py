"""Translation of operators that torch's ONNX exporter lacks, or translates slowly, into ONNX's own.

Each function builds nodes of standard ONNX operators for one operator of torch, torchvision or this
project. B images, P boxes per image, G groups, M RoIs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from detection.ops.nms import nms_operator

OPSET, IR_VERSION = 18, 8
"""Versions of ONNX's operators and of its files, which onnxruntime reads from 1.14 on."""
_LOWEST = -3e38
"""Below every score; float32's lowest number is -3.4e38."""


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return `custom_translation_table` of `torch.onnx.export`."""
    import torchvision  # noqa: F401  registers torch.ops.torchvision

    operators = torch.ops.torchvision
    return {
        nms_operator._opoverload: _nms_keep,
        torch.ops.aten.sort.stable: _stable_sort,
        operators.roi_align.default: _roi_align,
        operators.roi_pool.default: _roi_pool,
    }


def _nms_keep(
    boxes: Any, scores: Any, groups: Any, valid: Any, iou_thresh: float, max_kept: int | None = None
) -> Any:
    """`nms_keep`, with a group as a class of NonMaxSuppression.

    `max_kept` limits each group instead of each image. Callers take the best `max_kept` survivors,
    so that this makes no difference.
    """
    op = _operators()

    last = op.ReduceMax(groups, keepdims=0)
    numbers = op.Range(_scalar(0), op.Add(last, _scalar(1)), _scalar(1))
    of_group = op.Equal(op.Unsqueeze(groups, _ints(1)), op.Unsqueeze(numbers, _ints(0, 2)))
    wanted = op.And(of_group, op.Unsqueeze(valid, _ints(1)))  # (B, G, P)
    in_groups = op.Where(wanted, op.Unsqueeze(scores, _ints(1)), _floats(_LOWEST))
    limit = _ints(2**31 - 1 if max_kept is None else max_kept)
    # (n, 3): image, group, box
    found = op.NonMaxSuppression(boxes, in_groups, limit, _floats(iou_thresh), _floats(_LOWEST / 2))
    places = op.Gather(found, _ints(0, 2), axis=1)
    # ScatterND has no bool on every provider
    nothing = op.ConstantOfShape(op.Shape(valid), value=_tensor(np.zeros(1, np.int32)))
    count = op.Slice(op.Shape(places), _ints(0), _ints(1))
    ones = op.ConstantOfShape(count, value=_tensor(np.ones(1, np.int32)))
    return op.Cast(op.ScatterND(nothing, places, ones), to=9)  # bool


def _stable_sort(
    x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """TopK of the whole axis: of equal values the lower index comes first."""
    op = _operators()

    count = op.Gather(op.Shape(x), _ints(dim))
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def _roi_align(
    features: Any,
    rois: Any,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Any:
    """RoIAlign of the RoIs that reach the map; the others give 0.

    `pool_rois` moves RoIs of other levels to the left of the map, but onnxruntime's RoIAlign takes
    as long for them.
    """
    op = _operators()

    right = op.Squeeze(op.Slice(rois, _ints(3), _ints(4), _ints(1)), _ints(1))  # x2, (M,)
    # samples more than a cell outside the map are zero
    reaches = op.GreaterOrEqual(right, _floats(-1 / spatial_scale))
    idxs = op.Transpose(op.NonZero(reaches), perm=(1, 0))  # (n, 1)
    some = op.GatherND(rois, idxs)  # (n, 5)
    images = op.Cast(op.Squeeze(op.Slice(some, _ints(0), _ints(1), _ints(1)), _ints(1)), to=7)
    pooled = op.RoiAlign(
        features,
        op.Slice(some, _ints(1), _ints(5), _ints(1)),
        images,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        spatial_scale=spatial_scale,
        output_height=pooled_height,
        output_width=pooled_width,
        sampling_ratio=max(sampling_ratio, 0),  # 0 is ONNX's adaptive number
    )
    num_rois = op.Slice(op.Shape(rois), _ints(0), _ints(1))
    channels = op.Slice(op.Shape(features), _ints(1), _ints(2))
    shape = op.Concat(num_rois, channels, _ints(pooled_height, pooled_width), axis=0)
    nothing = op.ConstantOfShape(shape, value=_tensor(np.zeros(1, np.float32)))
    return op.ScatterND(nothing, idxs, pooled)


def _roi_pool(
    features: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int
) -> Any:
    """RoIPool; the second result, the positions of the maxima, is not used and stands for it."""
    op = _operators()

    shape = (pooled_height, pooled_width)
    pooled = op.MaxRoiPool(features, rois, pooled_shape=shape, spatial_scale=spatial_scale)
    return pooled, pooled


def _operators() -> Any:
    """Return onnxscript's functions for the operators of `OPSET`."""
    import onnxscript

    return onnxscript.opset18


def _scalar(value: int) -> Any:
    return _operators().Constant(value_int=value)


def _ints(*values: int) -> Any:
    return _operators().Constant(value_ints=values)


def _floats(*values: float) -> Any:
    return _operators().Constant(value_floats=values)


def _tensor(values: np.ndarray) -> Any:
    from onnxscript import ir

    return ir.tensor(values)
