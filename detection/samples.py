"""Training samples: match anchors or proposals to ground-truth boxes, and sample some for a loss.

B images, G ground-truth boxes, N candidates, P proposals, S samples per image. Boxes are xyxy in
network-input pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detection.ops.box_coder import BoxWeights, encode_boxes
from detection.ops.matching import match_boxes
from detection.ops.sampling import sample_matches
from detection.structures import Proposals, Targets
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


@dataclass(frozen=True)
class SampleSettings:
    """How candidates are matched and sampled; see `match_boxes` and `sample_matches`.

    box_weights: scale of the target deltas.
    """

    fg_thresh: float
    bg_thresh: float
    allow_low_quality: bool
    crowd_ioa_thresh: float
    num_samples: int
    fg_fraction: float
    box_weights: BoxWeights = (1.0, 1.0, 1.0, 1.0)


@torch.no_grad()
def draw_samples(
    targets: Targets,
    candidates: Tensor,
    exists: Tensor,
    seeds: Tensor,
    *,
    settings: SampleSettings,
    stream: int,
) -> Samples:
    """Match candidates to the ground truth and sample some of them for a loss.

    Args:
        targets: the ground truth.
        candidates: (N, 4), the same for every image, or (B, N, 4).
        exists: (B, N) bool, which candidates an image has; others are neither matched nor sampled.
        seeds: (B,) int64, one random seed per image.
        settings: thresholds and numbers.
        stream: number of the random stream; every use of the same seed has its own.
    """
    # (B, N, 4). Candidates that do not exist become empty boxes: otherwise one of them could be an
    # object's best match.
    candidates = torch.where(exists[..., None], candidates, 0.0)
    matched_idxs, labels = match_boxes(
        targets.boxes,
        targets.valid,
        targets.is_crowd,
        candidates,
        fg_thresh=settings.fg_thresh,
        bg_thresh=settings.bg_thresh,
        allow_low_quality=settings.allow_low_quality,
        crowd_ioa_thresh=settings.crowd_ioa_thresh,
    )
    labels = labels.masked_fill(~exists, -1)
    idxs, is_fg, valid = sample_matches(
        labels,
        random_keys(seeds, labels.shape[1], stream=stream),
        num_samples=settings.num_samples,
        fg_fraction=settings.fg_fraction,
    )
    boxes, gt_idxs = _take_boxes(candidates, idxs), matched_idxs.gather(1, idxs)
    gt_boxes = _take_boxes(targets.boxes, gt_idxs)
    deltas = encode_boxes(gt_boxes, boxes, weights=settings.box_weights)
    return Samples(boxes, idxs, gt_idxs, gt_boxes, deltas, is_fg, valid)


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


def _take_boxes(boxes: Tensor, idxs: Tensor) -> Tensor:
    """Return the boxes (B, S, 4) at indices (B, S) of `boxes` (B, N, 4)."""
    return boxes.gather(1, idxs[..., None].expand(-1, -1, 4))
