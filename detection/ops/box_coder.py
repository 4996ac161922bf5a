"""Boxes as offsets from anchors (Girshick et al. 2014, appendix C), in float32 or wider.

Boxes are (..., 4) xyxy pixels; deltas are (..., 4): dx, dy, dw, dh.
"""

import math

import torch
from torch import Tensor

from detection.ops.precision import at_least_float32

BoxWeights = tuple[float, float, float, float]

# sides are taken as at least this, so that the padding rows of a batch encode to finite numbers
_MIN_SIDE = 1e-6
# a decoded side is at most 62.5 times its anchor's, so that exp() does not overflow (Detectron)
_MAX_LOG_SCALE = math.log(1000 / 16)


def encode_boxes(gt: Tensor, anchors: Tensor, *, weights: BoxWeights = (1, 1, 1, 1)) -> Tensor:
    """Return the deltas that turn `anchors` into `gt`.

    Args:
        gt: (..., 4), in the frame of the anchors; leading dimensions broadcast.
        anchors: (..., 4).
        weights: factors of dx, dy, dw, dh, which bring the targets to about unit variance.

    Returns:
        (..., 4) float32 (float64 when an input is), finite for finite boxes, empty ones too.
    """
    gt_centers, gt_sizes = _centers_and_sizes(gt)
    centers, sizes = _centers_and_sizes(anchors)
    gt_sizes, sizes = gt_sizes.clamp(min=_MIN_SIDE), sizes.clamp(min=_MIN_SIDE)
    dx, dy = ((gt_centers - centers) / sizes).unbind(-1)
    dw, dh = torch.log(gt_sizes / sizes).unbind(-1)
    wx, wy, ww, wh = weights
    return torch.stack([dx * wx, dy * wy, dw * ww, dh * wh], dim=-1)


def decode_boxes(
    deltas: Tensor,
    anchors: Tensor,
    *,
    weights: BoxWeights = (1, 1, 1, 1),
    max_log_scale: float = _MAX_LOG_SCALE,
) -> Tensor:
    """Return the boxes that `deltas` make of `anchors`: the inverse of `encode_boxes`.

    Args:
        deltas: (..., 4), as predicted; bfloat16 is widened to float32.
        anchors: (..., 4); leading dimensions broadcast.
        weights: the factors that the targets were encoded with.
        max_log_scale: cap on dw and dh after division by their weights.

    Returns:
        (..., 4) xyxy float32 (float64 when an input is) in the frame of the anchors, not clipped.
    """
    centers, sizes = _centers_and_sizes(anchors)
    dx, dy, dw, dh = (
        delta / weight
        for delta, weight in zip(at_least_float32(deltas).unbind(-1), weights, strict=True)
    )
    new_centers = torch.stack([dx, dy], dim=-1) * sizes + centers
    new_sizes = torch.stack([dw, dh], dim=-1).clamp(max=max_log_scale).exp() * sizes
    return torch.cat([new_centers - 0.5 * new_sizes, new_centers + 0.5 * new_sizes], dim=-1)


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    boxes = at_least_float32(boxes)
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sizes, sizes
