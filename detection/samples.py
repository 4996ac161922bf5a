"""Match anchors or proposals to the ground truth, and sample those that a loss is taken on.

B images, G ground-truth boxes, N candidates, S samples an image. Frame: network-input pixels.
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
    """Candidates chosen for a loss.

    boxes: (B, S, 4) the candidates. idxs: (B, S) among all candidates. gt_idxs: (B, S) matched
    ground truth. gt_boxes: (B, S, 4) its boxes.
    target_deltas: (B, S, 4). is_fg, valid: (B, S) bool.
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
    """How candidates are matched and drawn; see `match_boxes` and `sample_matches`.

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
    """Match candidates to the ground truth and sample those that a loss is taken on.

    Args:
        targets: the ground truth.
        candidates: (N, 4), the same for every image, or (B, N, 4).
        exists: (B, N) bool, which of them an image has; the others match nothing and are not drawn.
        seeds: (B,) int64, each image's own draw.
        settings: thresholds and numbers.
        stream: of random numbers; each use of one seed has its own.
    """
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
    boxes, gt_idxs = _rows(candidates, idxs), matched_idxs.gather(1, idxs)
    gt_boxes = _rows(targets.boxes, gt_idxs)
    deltas = encode_boxes(gt_boxes, boxes, weights=settings.box_weights)
    return Samples(boxes, idxs, gt_idxs, gt_boxes, deltas, is_fg, valid)


def most_foreground(is_fg: Tensor, limit: int) -> int:
    """Return how many of the first samples (B, S) hold all foreground, at least 1, at most `limit`.

    On a device, and where a graph is compiled, `limit` itself: the host does not wait for a count.
    On a CPU a count costs nothing, and rows without an object would be most of a mask head's work.
    """
    if is_fg.device.type != "cpu" or torch.compiler.is_compiling():
        return limit
    return min(limit, max(1, int(is_fg.sum(dim=1).max())))


def with_ground_truth(proposals: Proposals, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return the candidates of a region head (B, P + G, 4), and which of them exist (B, P + G).

    Ground-truth boxes join the proposals, so that there are good boxes from the first step on.
    """
    boxes = torch.cat([proposals.boxes, targets.boxes], dim=1)
    return boxes, torch.cat([proposals.valid, targets.valid & ~targets.is_crowd], dim=1)


def _rows(boxes: Tensor, idxs: Tensor) -> Tensor:
    """Pick boxes (B, N, 4) by idxs (B, S) -> (B, S, 4)."""
    return boxes.gather(1, idxs[..., None].expand(-1, -1, 4))
