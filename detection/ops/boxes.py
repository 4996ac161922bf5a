"""Areas, IoU, clipping and format conversions of boxes.

Boxes are (..., 4) xyxy in pixels, width = x2 - x1. B images, G ground-truth boxes, N boxes.
A box with x2 <= x1 or y2 <= y1 is empty: its area and every overlap with it are 0, never NaN.
"""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Boxes = TypeVar("Boxes", Tensor, np.ndarray)


def box_area(boxes: Tensor) -> Tensor:
    """Return the areas (...,) of `boxes` (..., 4), in square pixels."""
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sizes[..., 0] * sizes[..., 1]


def take_boxes(boxes: Tensor, idxs: Tensor) -> Tensor:
    """Return the boxes, or deltas, (..., M, 4) at indices (..., M) of `boxes` (..., N, 4)."""
    # not take_along_dim, which needs a compiled graph for each N, and fixes B in an exported one
    return boxes.gather(-2, idxs[..., None].expand(*idxs.shape, 4))


def box_iou(a: Tensor, b: Tensor, *, is_crowd: Tensor | None = None) -> Tensor:
    """Return intersection over union of every box of `a` with every box of `b`.

    Args:
        a: (..., G, 4); G may be 0.
        b: (..., N, 4); N may be 0. Leading dimensions broadcast with those of `a`.
        is_crowd: (..., G) bool: rows of `a` that are crowd regions. For them the intersection is
            divided by the area of `b` alone (COCO's rule): the share of `b` inside the crowd.

    Returns:
        (..., G, N) in [0, 1]; 0 where the denominator is 0.
    """
    # Each coordinate is (..., G, 1) for `a` and (..., 1, N) for `b`, so they broadcast to
    # (..., G, N). One contiguous row per coordinate: a CPU cannot vectorise interleaved ones.
    ax1, ay1, ax2, ay2 = a.movedim(-1, 0).contiguous()[..., :, None].unbind()
    bx1, by1, bx2, by2 = b.movedim(-1, 0).contiguous()[..., None, :].unbind()
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    b_area = box_area(b)[..., None, :]
    total = box_area(a)[..., :, None] + b_area - intersection
    if is_crowd is not None:
        total = torch.where(is_crowd[..., :, None], b_area, total)
    # the smallest positive float: empty boxes give 0 / tiny = 0 instead of 0 / 0 = NaN
    return intersection / total.clamp(min=torch.finfo(total.dtype).tiny)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalized IoU of each box of `a` with the box of `b` at the same index.

    Rezatofighi et al. 2019: IoU minus the share of the enclosing box that neither box covers.
    Unlike IoU it has a gradient where the boxes do not touch.

    Args:
        a: (..., 4).
        b: (..., 4).

    Returns:
        (...,) in [-1, 1]; 0 where both boxes are empty and at the same point.
    """
    # Corners of the intersection and of the smallest enclosing box. box_area is 0 for an
    # intersection with x2 < x1 or y2 < y1.
    overlap = torch.cat([torch.maximum(a, b)[..., :2], torch.minimum(a, b)[..., 2:]], dim=-1)
    around = torch.cat([torch.minimum(a, b)[..., :2], torch.maximum(a, b)[..., 2:]], dim=-1)
    intersection, hull = box_area(overlap), box_area(around)
    union = box_area(a) + box_area(b) - intersection
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return `boxes` (B, N, 4) clipped to their images of `sizes` (B, 2), (height, width)."""
    # (height, width) -> (B, 1, 4): width, height, width, height
    limits = sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limits)


def box_factors(sizes: Tensor, new_sizes: Tensor) -> Tensor:
    """Return the factors of x1, y1, x2, y2, (B, 4), from images of some sizes to resized ones.

    sizes, new_sizes: (B, 2), (height, width).
    """
    return (new_sizes / sizes).flip(1).repeat(1, 2)  # to width, height, width, height


def whole_image_boxes(sizes: Tensor) -> Tensor:
    """Return the box of each whole image, (B, 1, 4) float32, from `sizes` (B, 2)."""
    far = sizes.flip(-1).float()  # (B, 2) width, height
    return torch.cat([torch.zeros_like(far), far], dim=1)[:, None]


def flip_boxes(boxes: Tensor, width: int | Tensor) -> Tensor:
    """Flip boxes (..., 4) xyxy left to right in an image of `width` pixels.

    width: a number, or a tensor that broadcasts with (...,).
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    # the right side becomes the left one, so x1 stays at most x2
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def xywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Return (..., 4) xyxy from `boxes` (..., 4) as left, top, width, height (COCO's order)."""
    if isinstance(boxes, Tensor):
        return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)
    with np.errstate(over="ignore", invalid="ignore"):  # callers report what is not finite
        return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes: Boxes) -> Boxes:
    """Return (..., 4) left, top, width, height (COCO's order) from `boxes` (..., 4) xyxy."""
    if isinstance(boxes, Tensor):
        return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)
    with np.errstate(over="ignore", invalid="ignore"):  # callers report what is not finite
        return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)
