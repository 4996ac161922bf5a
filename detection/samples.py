"""Training samples: match anchors or RoIs to ground-truth boxes, and sample some for a loss.

B images, G ground-truth boxes, N candidates, P proposals, S samples per image, K classes. Boxes are
xyxy in network-input pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from detection.config import AnchorLossConfig, RegionLossConfig
from detection.ops.box_coder import BoxWeights, encode_boxes
from detection.ops.matching import match_boxes
from detection.ops.sampling import sample_matches
from detection.structures import DetectionBatch, Proposals, Targets
from engine.random_keys import random_keys


class Samples(NamedTuple):
    """Candidates sampled for a loss, foreground first.

    boxes: (B, S, 4) the candidates. idxs: (B, S) their indices among all candidates. gt_idxs:
    (B, S) indices of the matched ground-truth boxes. gt_boxes: (B, S, 4) those boxes.
    target_deltas: (B, S, 4), from `boxes` to `gt_boxes`. is_fg, valid: (B, S) bool.
    """

    boxes: Tensor
    idxs: Tensor
    gt_idxs: Tensor
    gt_boxes: Tensor
    target_deltas: Tensor
    is_fg: Tensor
    valid: Tensor


@torch.no_grad()
def sample_anchors(
    anchors: Tensor,
    exists: Tensor,
    batch: DetectionBatch,
    *,
    config: AnchorLossConfig,
    crowd_ioa_thresh: float,
) -> Samples:
    """Match anchors to the ground truth and sample some of them for a loss.

    Args:
        anchors: (N, 4), the same for every image.
        exists: (B, N) bool, which anchors an image has; others are neither matched nor sampled.
        batch: ground truth, and a random seed per image.
        config: thresholds and numbers.
        crowd_ioa_thresh: share of a background anchor in a crowd region from which it is ignored.
    """
    targets, anchors = batch.targets, _existing(anchors, exists)
    matches = match_boxes(
        targets.boxes,
        targets.valid,
        targets.is_crowd,
        anchors,
        fg_thresh=config.fg_iou_thresh,
        bg_thresh=config.bg_iou_thresh,
        allow_low_quality=True,
        crowd_ioa_thresh=crowd_ioa_thresh,
    )
    unscaled = (1.0, 1.0, 1.0, 1.0)
    return _draw(anchors, exists, batch, matches, config=config, box_weights=unscaled, stream=0)


@torch.no_grad()
def sample_rois(
    boxes: Tensor,
    exists: Tensor,
    batch: DetectionBatch,
    *,
    config: RegionLossConfig,
    crowd_ioa_thresh: float,
    stage: int = 0,
) -> Samples:
    """Match RoIs to the ground truth and sample some of them for the losses of a region head.

    Args:
        boxes: (B, N, 4).
        exists: (B, N) bool, which RoIs an image has; others are neither matched nor sampled.
        batch: ground truth, and a random seed per image.
        config: threshold, numbers, and scale of the target deltas.
        crowd_ioa_thresh: share of a background RoI in a crowd region from which it is ignored.
        stage: of the region head, 0 the first; each has its own random numbers.
    """
    targets, boxes = batch.targets, _existing(boxes, exists)
    matches = match_boxes(
        targets.boxes,
        targets.valid,
        targets.is_crowd,
        boxes,
        # one threshold, so no RoI is between foreground and background
        fg_thresh=config.fg_iou_thresh,
        bg_thresh=config.fg_iou_thresh,
        allow_low_quality=False,
        crowd_ioa_thresh=crowd_ioa_thresh,
    )
    box_weights, stream = config.box_weights, 1 + stage  # stream 0 is that of the anchors
    return _draw(
        boxes, exists, batch, matches, config=config, box_weights=box_weights, stream=stream
    )


def most_foreground(is_fg: Tensor, limit: int) -> int:
    """Return how many leading samples of (B, S) contain all foreground: from 1 to `limit`.

    On a GPU, and in a compiled graph, this is `limit`, so that the host does not wait for a count.
    On a CPU counting is cheap, and it saves the mask head most of its work, which would be on rows
    without an object.
    """
    if is_fg.device.type != "cpu" or torch.compiler.is_compiling():
        return limit
    return min(limit, max(1, int(is_fg.sum(dim=1).max())))


def with_ground_truth(proposals: Proposals, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return the candidates of a region head (B, P + G, 4), and which of them exist (B, P + G).

    Ground-truth boxes are added to the proposals, so that there are good boxes from the first step.
    """
    # Padding rows and crowd regions of the ground truth are not candidates.
    boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
    return boxes, torch.cat([proposals.valid, targets.valid & ~targets.is_crowd], dim=1)


def class_labels(samples: Samples, targets: Targets, *, num_classes: int) -> Tensor:
    """Return the true classes (B, S) of samples: of the matched box if foreground, otherwise K."""
    background = torch.full_like(samples.gt_idxs, num_classes)
    return torch.where(samples.is_fg, targets.labels.gather(1, samples.gt_idxs), background)


def _existing(candidates: Tensor, exists: Tensor) -> Tensor:
    """Return candidates (B, N, 4) in which those that do not exist are empty boxes.

    Otherwise one of them could be an object's best match.
    """
    return torch.where(exists[..., None], candidates, 0.0)


def _draw(
    candidates: Tensor,
    exists: Tensor,
    batch: DetectionBatch,
    matches: tuple[Tensor, Tensor],
    *,
    config: AnchorLossConfig | RegionLossConfig,
    box_weights: BoxWeights,
    stream: int,
) -> Samples:
    """Sample some of the matched candidates, and encode their ground-truth boxes as targets."""
    matched_idxs, labels = matches
    # -1 is never sampled; the random numbers of an image depend on its seed alone
    idxs, is_fg, valid = sample_matches(
        labels.masked_fill(~exists, -1),
        random_keys(batch.images.seeds, labels.shape[1], stream=stream),
        num_samples=config.num_samples,
        fg_fraction=config.fg_fraction,
    )
    # (B, N) -> (B, S): everything about the candidates, at the sampled places
    boxes, gt_idxs = _take_boxes(candidates, idxs), matched_idxs.gather(1, idxs)
    gt_boxes = _take_boxes(batch.targets.boxes, gt_idxs)
    deltas = encode_boxes(gt_boxes, boxes, weights=box_weights)
    return Samples(boxes, idxs, gt_idxs, gt_boxes, deltas, is_fg, valid)


def _take_boxes(boxes: Tensor, idxs: Tensor) -> Tensor:
    """Return the boxes (B, S, 4) at indices (B, S) of `boxes` (B, N, 4)."""
    return boxes.gather(1, idxs[..., None].expand(-1, -1, 4))
