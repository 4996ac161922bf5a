"""Areas, overlaps and conversions of boxes.

Boxes are (..., 4) xyxy in pixels of one frame, width = x2 - x1. B images, G ground truth, N boxes.
A box with x2 <= x1 or y2 <= y1 is empty: its area and every overlap with it are 0, never NaN.
"""

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Return the areas (...,) of `boxes` (..., 4), in square pixels."""
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sizes[..., 0] * sizes[..., 1]


def box_iou(a: Tensor, b: Tensor, *, is_crowd: Tensor | None = None) -> Tensor:
    """Return intersection over union of every box of `a` with every box of `b`.

    Args:
        a: (..., G, 4); G may be 0.
        b: (..., N, 4); N may be 0. Leading dimensions broadcast with those of `a`.
        is_crowd: (..., G) bool: rows of `a` that stand for a crowd, in which a box of `b` is to lie
            and not to fill it: intersection over the area of `b` (COCO's rule).

    Returns:
        (..., G, N) in [0, 1]; 0 where the denominator is.
    """
    # one contiguous row per coordinate: with the coordinates interleaved a CPU cannot vectorise
    ax1, ay1, ax2, ay2 = a.movedim(-1, 0).contiguous()[..., :, None].unbind()
    bx1, by1, bx2, by2 = b.movedim(-1, 0).contiguous()[..., None, :].unbind()
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    b_area = box_area(b)[..., None, :]
    total = box_area(a)[..., :, None] + b_area - intersection
    if is_crowd is not None:
        total = torch.where(is_crowd[..., :, None], b_area, total)
    return intersection / total.clamp(min=torch.finfo(total.dtype).tiny)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalized IoU of each box of `a` with the one of `b` in its place.

    Rezatofighi et al. 2019: IoU, less the share that neither box fills of the smallest box around
    both. Unlike IoU it has a gradient where the boxes do not touch.

    Args:
        a: (..., 4).
        b: (..., 4).

    Returns:
        (...,) in [-1, 1]; 0 where both boxes are empty and in one place.
    """
    overlap = torch.cat([torch.maximum(a, b)[..., :2], torch.minimum(a, b)[..., 2:]], dim=-1)
    around = torch.cat([torch.minimum(a, b)[..., :2], torch.maximum(a, b)[..., 2:]], dim=-1)
    intersection, hull = box_area(overlap), box_area(around)
    union = box_area(a) + box_area(b) - intersection
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return `boxes` (B, N, 4) cut to their images: `sizes` (B, 2), (height, width)."""
    limits = sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limits)


def mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    """Mirror boxes (..., 4) xyxy left to right in an image of `width` pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Return (..., 4) xyxy from `boxes` (..., 4) as left, top, width, height (COCO's order)."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Return (..., 4) left, top, width, height (COCO's order) from `boxes` (..., 4) xyxy."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)
