"""Matching of candidates (anchors or proposals) to ground-truth boxes by IoU.

B images, G ground-truth boxes (padded), N candidates. Boxes are xyxy pixels of the network input.
"""

import torch
from torch import Tensor

from detection.ops.boxes import box_iou

# Ground-truth boxes compared at a time. Memory is B * _CHUNK * N, even in crowded images; in a
# compiled graph it is up to B * G * N.
_CHUNK = 4


def match_boxes(
    gt_boxes: Tensor,
    gt_valid: Tensor,
    is_crowd: Tensor,
    candidates: Tensor,
    *,
    fg_thresh: float,
    bg_thresh: float,
    allow_low_quality: bool,
    crowd_ioa_thresh: float,
) -> tuple[Tensor, Tensor]:
    """Match every candidate to the ground-truth box of highest IoU, and label it for training.

    A candidate is foreground if this IoU is at least `fg_thresh`, background if it is below
    `bg_thresh`, and ignored in between. Of equal IoU the lowest ground-truth index wins. Crowd
    regions match no candidate; background candidates inside one are ignored.

    Args:
        gt_boxes: (B, G, 4); G at least 1.
        gt_valid: (B, G) bool.
        is_crowd: (B, G) bool.
        candidates: (N, 4), the same for every image, or (B, N, 4). Missing candidates are zeros:
            they overlap nothing, are no object's best match, and are labelled 0.
        fg_thresh: see above.
        bg_thresh: see above; at most `fg_thresh`.
        allow_low_quality: the candidates with an object's highest IoU (all of them if tied) are
            foreground at any IoU above 0. Each stays matched to its own best box, which may be
            another object (Faster R-CNN, section 3.1.2, as in torchvision and detectron2).
        crowd_ioa_thresh: a background candidate is ignored if at least this share of its area is in
            one crowd region.

    Returns:
        matched_idxs (B, N) int64, always a valid index into G; match_labels (B, N) int64:
        1 foreground, 0 background, -1 ignore.
    """
    batch, num_gt = gt_valid.shape
    candidates = candidates.expand(batch, -1, -1)
    best_iou = candidates.new_zeros(candidates.shape[:2])
    matched_idxs = torch.zeros_like(best_iou, dtype=torch.int64)
    is_best = torch.zeros_like(best_iou, dtype=torch.bool)
    crowd_ioa = torch.zeros_like(best_iou)
    if candidates.shape[1] == 0:
        return matched_idxs, matched_idxs.clone()

    # A compiled graph takes all of them at once, so that one graph serves every G.
    compiling = torch.compiler.is_compiling()
    for start in (0,) if compiling else range(0, num_gt, _CHUNK):
        chunk = slice(None) if compiling else slice(start, start + _CHUNK)
        crowd = is_crowd[:, chunk]
        # (B, chunk, N): IoU with objects, share of the candidate's area in crowd regions
        overlap = box_iou(gt_boxes[:, chunk], candidates, is_crowd=crowd)
        crowd_overlap = overlap * (gt_valid[:, chunk] & crowd)[..., None]
        crowd_ioa = torch.maximum(crowd_ioa, crowd_overlap.amax(dim=1))
        iou = overlap * (gt_valid[:, chunk] & ~crowd)[..., None]
        chunk_iou, chunk_idxs = iou.max(dim=1)
        # Strictly greater: on a tie the earlier ground-truth box stays.
        matched_idxs = torch.where(chunk_iou > best_iou, chunk_idxs + start, matched_idxs)
        best_iou = torch.maximum(best_iou, chunk_iou)
        if allow_low_quality:
            # (B, chunk, 1): each object's highest IoU. It must be above 0, or every candidate would
            # be the best of an object that none overlaps.
            gt_best = iou.amax(dim=2, keepdim=True)
            is_best |= ((iou == gt_best) & (gt_best > 0)).any(dim=1)

    foreground = (best_iou >= fg_thresh) | is_best
    # > 0: with a threshold of 0, candidates outside all crowd regions are still background
    ignored = (best_iou >= bg_thresh) | ((crowd_ioa > 0) & (crowd_ioa >= crowd_ioa_thresh))
    return matched_idxs, torch.where(foreground, 1, torch.where(ignored, -1, 0))
