"""Box voting (Gidaris and Komodakis 2015, section 3.2).

B images, D detections per image, M candidates per image.
"""

import torch
from torch import Tensor

from detection.ops.boxes import box_iou

_ROWS = 16
"""Detections that vote at once, which bounds the memory: (B, _ROWS, M) numbers."""


def vote_boxes(
    kept_boxes: Tensor,
    kept_labels: Tensor,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_thresh: float,
) -> Tensor:
    """Return each detection's box as the mean of the candidates that overlap it.

    The candidates of its class with an IoU of at least `iou_thresh` are weighted by their scores.
    NMS keeps one of them and drops the others; the mean uses the position of all.

    Args:
        kept_boxes: (B, D, 4) xyxy, the detections that NMS has kept; D may be 0.
        kept_labels: (B, D) int64.
        boxes: (B, M, 4) xyxy, all candidates before NMS; M may be 0.
        scores: (B, M); candidates with a score of 0 or below do not vote, whatever their box is.
        labels: (B, M) int64.
        iou_thresh: IoU from which a candidate votes.

    Returns:
        (B, D, 4); a detection without a vote keeps its box.
    """
    # 0 times NaN is NaN: without this, one box that is not finite would spoil every mean
    boxes = boxes.where((scores > 0)[..., None], 0.0)
    # float64: autocast and TF32 would round the coordinates to some ten bits
    positions, weights = boxes.double(), scores.clamp(min=0).double()[:, None]  # (B, 1, M)
    voted = []
    for some, own in zip(kept_boxes.split(_ROWS, 1), kept_labels.split(_ROWS, 1), strict=True):
        votes = box_iou(some, boxes) >= iou_thresh  # (B, _ROWS, M)
        votes &= own[..., None] == labels[:, None]
        own_weights = weights * votes
        total = own_weights.sum(dim=2, keepdim=True)
        mean = own_weights @ positions / total.where(total > 0, 1.0)
        voted.append(mean.to(some.dtype).where(total > 0, some))
    return torch.cat(voted, dim=1)
