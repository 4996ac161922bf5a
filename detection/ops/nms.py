"""Non-maximum suppression of a whole batch."""

import torch
from torch import Tensor
from torchvision.ops import nms


@torch.library.custom_op("resdet::nms_keep", mutates_args=())
def nms_keep(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, *, iou_thresh: float
) -> Tensor:
    """Mark the boxes that survive greedy suppression among their own image and group.

    The one place of a training step where the host waits for the device: the kernel returns as many
    rows as survive. It is an operator of its own, so that a compiled graph does not break on it.

    Args:
        boxes: (B, P, 4) xyxy; P may be 0.
        scores: (B, P); of equal ones the lower index goes first.
        groups: (B, P) int64, 0 or more: level or class. Boxes of two groups do not meet.
        valid: (B, P) bool; the others neither survive nor suppress.
        iou_thresh: a box goes when its IoU with a surviving one is above this.

    Returns:
        keep (B, P) bool.
    """
    keep = torch.zeros_like(valid)
    for image in range(len(boxes)):
        idxs = valid[image].nonzero()[:, 0]
        if len(idxs) == 0:
            continue
        group = groups[image, idxs]
        # groups are moved apart by more than the picture, in float64 so that no IoU changes
        corners = boxes[image, idxs].double()
        corners = corners + (group * (corners.max() - corners.min() + 1))[:, None]
        parts = [torch.arange(len(idxs), device=boxes.device)]
        if boxes.device.type == "cpu":  # time is quadratic: groups one by one are faster there
            parts = [(group == value).nonzero()[:, 0] for value in group.unique()]
        for part in parts:
            ranks = scores[image, idxs[part]].double()
            keep[image, idxs[part[nms(corners[part], ranks, iou_thresh)]]] = True
    return keep


@nms_keep.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, *, iou_thresh: float) -> Tensor:
    return torch.empty_like(valid)
