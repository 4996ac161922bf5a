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
        scores: (B, M); candidates with a score of 0 or below do not vote.
        labels: (B, M) int64.
        iou_thresh: IoU from which a candidate votes.

    Returns:
        (B, D, 4); a detection without a vote keeps its box.
    """
    parts = [
        _vote(*rows, boxes, scores, labels, iou_thresh=iou_thresh)
        for rows in zip(kept_boxes.split(_ROWS, 1), kept_labels.split(_ROWS, 1), strict=True)
    ]
    return torch.cat(parts, dim=1)


def _vote(
    kept_boxes: Tensor,
    kept_labels: Tensor,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_thresh: float,
) -> Tensor:
    votes = box_iou(kept_boxes, boxes) >= iou_thresh  # (B, D, M)
    votes &= kept_labels[..., None] == labels[:, None]
    # float64: autocast and TF32 would round the coordinates to some ten bits
    weights = scores.clamp(min=0).double()[:, None] * votes
    total = weights.sum(dim=2, keepdim=True)
    mean = weights @ boxes.double() / total.where(total > 0, 1.0)
    return mean.to(kept_boxes.dtype).where(total > 0, kept_boxes)
