"""Box coder: boxes as offsets from anchors (Girshick et al. 2014, appendix C).

Boxes are (..., 4) xyxy pixels; deltas are (..., 4): dx, dy, dw, dh. All arithmetic is in float32 or
wider.
"""

import math

import torch
from torch import Tensor

from detection.ops.precision import at_least_float32

BoxWeights = tuple[float, float, float, float]

# Sides are clamped to this, so that empty boxes (padding rows of a batch) have finite deltas.
_MIN_SIDE = 1e-6
# A decoded side is at most 62.5 times its anchor's, so that exp() does not overflow (Detectron).
_MAX_LOG_SCALE = math.log(1000 / 16)


def encode_boxes(gt: Tensor, anchors: Tensor, *, weights: BoxWeights = (1, 1, 1, 1)) -> Tensor:
    """Return the deltas that turn `anchors` into `gt`.

    Args:
        gt: (..., 4), in the frame of the anchors; leading dimensions broadcast.
        anchors: (..., 4).
        weights: factors of dx, dy, dw, dh, which give the targets about unit variance.

    Returns:
        (..., 4) float32 (float64 if an input is), finite for all finite boxes, also empty ones.
    """
    gt_centers, gt_sizes = _centers_and_sizes(gt)
    centers, sizes = _centers_and_sizes(anchors)
    gt_sizes, sizes = gt_sizes.clamp(min=_MIN_SIDE), sizes.clamp(min=_MIN_SIDE)
    # shift of the center in units of the anchor's sides; logarithm of the ratio of the sides
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
    """Return `anchors` moved and scaled by `deltas`: the inverse of `encode_boxes`.

    Args:
        deltas: (..., 4), as predicted; bfloat16 is widened to float32.
        anchors: (..., 4); leading dimensions broadcast.
        weights: the factors with which the targets were encoded.
        max_log_scale: largest dw and dh after division by their weights.

    Returns:
        (..., 4) xyxy float32 (float64 if an input is) in the frame of the anchors, not clipped.
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
    """Return (x, y) of the centers and (width, height) of boxes (..., 4), (..., 2) each."""
    boxes = at_least_float32(boxes)
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sizes, sizes
