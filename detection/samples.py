"""Training samples: match anchors or RoIs to ground-truth boxes, and sample some for a loss.

B images, G ground-truth boxes, N candidates, P proposals, S samples per image, K classes. Boxes are
xyxy in network-input pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from detection.config import AnchorLossConfig, RegionLossConfig
from detection.ops.box_coder import BoxWeights, encode_boxes
from detection.ops.boxes import take_boxes
from detection.ops.matching import match_boxes
from detection.ops.sampling import sample_matches
from detection.structures import DetectionBatch, Proposals, Targets
from engine.random_keys import random_keys


class SampledBoxes(NamedTuple):
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
    valid: Tensor,
    batch: DetectionBatch,
    *,
    config: AnchorLossConfig,
    crowd_ioa_thresh: float,
) -> SampledBoxes:
    """Match anchors to the ground truth and sample some of them for a loss.

    Args:
        anchors: (N, 4), the same for every image.
        valid: (B, N) bool, which anchors an image has; others are neither matched nor sampled.
        batch: ground truth, and a random seed per image.
        config: thresholds and numbers.
        crowd_ioa_thresh: see `match_boxes`.
    """
    return _sample(
        anchors,
        valid,
        batch,
        config=config,
        bg_thresh=config.bg_iou_thresh,
        crowd_ioa_thresh=crowd_ioa_thresh,
        box_weights=(1.0, 1.0, 1.0, 1.0),
        stage=None,
    )


@torch.no_grad()
def sample_rois(
    boxes: Tensor,
    valid: Tensor,
    batch: DetectionBatch,
    *,
    config: RegionLossConfig,
    crowd_ioa_thresh: float,
    stage: int = 0,
) -> SampledBoxes:
    """Match RoIs to the ground truth and sample some of them for the losses of a region head.

    Args:
        boxes: (B, N, 4).
        valid: (B, N) bool, which RoIs an image has; others are neither matched nor sampled.
        batch: ground truth, and a random seed per image.
        config: threshold, numbers, and scale of the target deltas.
        crowd_ioa_thresh: see `match_boxes`.
        stage: of the region head, 0 the first; each has its own random numbers.
    """
    return _sample(
        boxes,
        valid,
        batch,
        config=config,
        bg_thresh=config.fg_iou_thresh,  # no RoI is between foreground and background
        crowd_ioa_thresh=crowd_ioa_thresh,
        box_weights=config.box_weights,
        stage=stage,
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
    """Return the candidates of a region head (B, P + G, 4), and which of them are valid (B, P + G).

    Ground-truth boxes are added to the proposals, so that there are good boxes from the first step.
    """
    # Padding rows and crowd regions of the ground truth are not candidates.
    boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
    return boxes, torch.cat([proposals.valid, targets.valid & ~targets.is_crowd], dim=1)


def class_labels(samples: SampledBoxes, targets: Targets, *, num_classes: int) -> Tensor:
    """Return the true classes (B, S) of samples: of the matched box if foreground, otherwise K."""
    background = torch.full_like(samples.gt_idxs, num_classes)
    return torch.where(samples.is_fg, targets.labels.gather(1, samples.gt_idxs), background)


def _sample(
    candidates: Tensor,
    valid: Tensor,
    batch: DetectionBatch,
    *,
    config: AnchorLossConfig | RegionLossConfig,
    bg_thresh: float,
    crowd_ioa_thresh: float,
    box_weights: BoxWeights,
    stage: int | None,
) -> SampledBoxes:
    """Match candidates, sample some of them, and encode their ground-truth boxes as targets.

    stage: of the region head; None: the candidates are anchors.
    """
    targets = batch.targets
    # (B, N, 4). Invalid candidates become empty boxes: otherwise one of them could be an object's
    # best match.
    candidates = torch.where(valid[..., None], candidates, 0.0)
    matched_idxs, labels = match_boxes(
        targets.boxes,
        targets.valid,
        targets.is_crowd,
        candidates,
        fg_thresh=config.fg_iou_thresh,
        bg_thresh=bg_thresh,
        allow_low_quality=stage is None,
        crowd_ioa_thresh=crowd_ioa_thresh,
    )
    # anchors and each stage use different random numbers of an image's seed
    stream = 0 if stage is None else 1 + stage
    idxs, is_fg, is_sample = sample_matches(
        labels.masked_fill(~valid, -1),  # -1 is never sampled
        random_keys(batch.images.seeds, labels.shape[1], stream=stream),
        num_samples=config.num_samples,
        fg_fraction=config.fg_fraction,
    )
    # (B, N) -> (B, S): everything about the candidates, at the sampled places
    boxes, gt_idxs = take_boxes(candidates, idxs), matched_idxs.gather(1, idxs)
    gt_boxes = take_boxes(targets.boxes, gt_idxs)
    deltas = encode_boxes(gt_boxes, boxes, weights=box_weights)
    return SampledBoxes(boxes, idxs, gt_idxs, gt_boxes, deltas, is_fg, is_sample)
