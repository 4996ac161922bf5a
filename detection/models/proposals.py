"""Proposals from the RPN's output: the best anchors of each level, decoded, clipped, after NMS.

B images, N anchors, M candidates that enter NMS, P proposals.
"""

from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from detection.config import RPNConfig
from detection.models.rpn import RPNOutput
from detection.ops.box_coder import decode_boxes
from detection.ops.boxes import clip_boxes, take_boxes
from detection.ops.nms import nms_keep
from detection.structures import Proposals


@torch.no_grad()
def make_proposals(
    rpn: RPNOutput, sizes: Tensor, *, config: RPNConfig, training: bool
) -> Proposals:
    """Turn the RPN's output into proposals (Faster R-CNN, section 3.1).

    Args:
        rpn: the RPN's output.
        sizes: (B, 2) height and width of the images before padding, in pixels.
        config: how many proposals to make, and the thresholds.
        training: use the counts for training instead of those for test.

    Returns:
        P = min(post_nms_topk, M, N) proposals per image, detached, in network-input pixels, by
        falling score; M = pre_nms_topk x number of levels. Where NMS keeps fewer (or none), the
        last rows are zeros and not valid.
    """
    pre_nms_topk = config.pre_nms_topk_train if training else config.pre_nms_topk_test
    post_nms_topk = config.post_nms_topk_train if training else config.post_nms_topk_test

    # Anchors on padding come last in the top-k of their level.
    logits = rpn.objectness_logits.masked_fill(~rpn.anchor_valid, -torch.inf)
    # First index of each level in N. The sum of all sizes ends the series, so zip is not strict.
    starts = accumulate(rpn.level_sizes, initial=0)
    best, exists = [], []  # for each level (B, pre_nms_topk): indices in N, whether they exist
    for level, start in zip(logits.split(rpn.level_sizes, dim=1), starts, strict=False):
        level_best, level_exists = _best_of_level(level, pre_nms_topk)
        best.append(level_best + start)
        exists.append(level_exists)
    # NMS compares only boxes of the same level.
    level_idxs = torch.cat([torch.full_like(idxs, level) for level, idxs in enumerate(best)], dim=1)
    idxs = torch.cat(best, dim=1)  # (B, M)

    deltas = take_boxes(rpn.deltas, idxs)  # (B, M, 4)
    boxes = clip_boxes(decode_boxes(deltas, rpn.anchors[idxs]), sizes)
    large = (boxes[..., 2:] - boxes[..., :2] > config.min_size).all(dim=2)
    logits = logits.gather(1, idxs)
    valid = rpn.anchor_valid.gather(1, idxs) & torch.cat(exists, dim=1) & large
    # not min(), whose result would be a symbol in a compiled graph with a varying N
    num_anchors = rpn.anchors.shape[0]
    is_enough = torch.compiler.is_exporting() or num_anchors >= post_nms_topk
    topk = post_nms_topk if is_enough else num_anchors
    # Ranked by logit: the sigmoid makes all logits above 17 one number.
    found = select_by_nms(boxes, logits, level_idxs, valid, nms_thresh=config.nms_thresh, topk=topk)
    return replace(found, scores=found.scores.sigmoid().where(found.valid, 0.0))


def _best_of_level(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the best `topk` anchors of a level, (B, topk), and which exist.

    A small level has fewer anchors; the rest of its indices are arbitrary but within the level. A
    `topk` that depended on the level's size would need a compiled graph for each size.

    Args:
        logits: (B, n), of the level's anchors.
        topk: number of anchors.
    """
    size = logits.shape[1]
    missing = logits.new_full((logits.shape[0], topk), -torch.inf)
    idxs = torch.cat([logits, missing], dim=1).topk(topk, dim=1).indices
    return idxs.clamp(max=size - 1), idxs < size


def select_by_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, *, nms_thresh: float, topk: int
) -> Proposals:
    """Run NMS on M boxes of each image and return the best survivors.

    Args:
        boxes: (B, M, 4) xyxy.
        scores: (B, M), any numbers.
        groups: (B, M) int64; boxes of different groups are not compared.
        valid: (B, M) bool.
        nms_thresh: a box is dropped if its IoU with a better one is above this.
        topk: largest number of boxes to keep.

    Returns:
        P = min(topk, M) boxes per image, by falling score. Where fewer survive, the last rows are
        zeros and not valid.
    """
    keep = nms_keep(boxes, scores, groups, valid, iou_thresh=nms_thresh, max_kept=topk)
    # Dropped boxes come last. A stable sort instead of a top-k, which does not define the order of
    # equal scores.
    scores, order = scores.masked_fill(~keep, -torch.inf).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :topk], order[:, :topk]
    valid = scores > -torch.inf  # not NaN either
    boxes = take_boxes(boxes, order)
    return Proposals(
        boxes=boxes.masked_fill(~valid[..., None], 0.0),
        scores=scores.where(valid, 0.0),
        valid=valid,
    )
