"""The losses of Faster and Mask R-CNN: values in, scalars out.

They are never computed below float32.

B images, S samples of each image, K classes, M cells along a mask's side.
Sums are divided by the number of valid samples: its mean over processes, so that the gradients of N
processes average to that of one process with the whole batch. Parts of a step that are computed one
after the other (`loop.accumulate`) average as well. Anchors and regions are drawn in fixed numbers;
for masks, whose number is what was found, `count` is the mean over parts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detection.ops.precision import at_least_float32
from engine.distributed import mean_over_ranks


def smooth_l1(pred: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Return the element-wise error: quadratic below `beta`, linear above; L1 when `beta` is 0."""
    error = (pred - target).abs()
    if beta == 0:
        return error
    return torch.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)


def rpn_loss(
    objectness_logits: Tensor,
    deltas: Tensor,
    target_deltas: Tensor,
    is_fg: Tensor,
    valid: Tensor,
    *,
    beta: float,
) -> dict[str, Tensor]:
    """Score the region proposal network on its sampled anchors.

    Args:
        objectness_logits: (B, S).
        deltas: (B, S, 4), predicted.
        target_deltas: (B, S, 4); counts where foreground.
        is_fg: (B, S) bool.
        valid: (B, S) bool; none valid gives zeros.
        beta: where smooth L1 turns linear.

    Returns:
        `rpn_objectness`: binary cross entropy, mean over samples. `rpn_box`: smooth L1 summed over
        coordinates and foreground, divided by the number of samples of both kinds.
    """
    objectness = objectness_loss(objectness_logits, is_fg)
    box = smooth_l1(at_least_float32(deltas), target_deltas, beta=beta).sum(dim=-1)
    count = count_samples(valid)
    return {
        "rpn_objectness": masked_sum(objectness, valid) / count,
        "rpn_box": masked_sum(box, valid & is_fg) / count,
    }


def roi_loss(
    class_logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    target_deltas: Tensor,
    valid: Tensor,
    *,
    beta: float,
) -> dict[str, Tensor]:
    """Score the region head on its sampled proposals.

    Args:
        class_logits: (B, S, K + 1), background last.
        deltas: (B, S, K, 4), predicted for each class; the true class's are scored.
        labels: (B, S) int64 in 0..K; K is background.
        target_deltas: (B, S, 4); counts where foreground.
        valid: (B, S) bool; none valid gives zeros.
        beta: where smooth L1 turns linear.

    Returns:
        `roi_class`: cross entropy, mean over samples. `roi_box`: smooth L1 summed over coordinates
        and foreground, divided by the number of samples of both kinds.
    """
    num_classes = deltas.shape[2]
    classification = F.cross_entropy(
        at_least_float32(class_logits).flatten(0, 1), labels.flatten(), reduction="none"
    ).view_as(labels)
    row = labels.clamp(max=num_classes - 1)[..., None, None].expand(-1, -1, 1, 4)
    own = at_least_float32(deltas.gather(2, row)[:, :, 0])
    box = smooth_l1(own, target_deltas, beta=beta).sum(dim=-1)
    count = count_samples(valid)
    return {
        "roi_class": masked_sum(classification, valid) / count,
        "roi_box": masked_sum(box, valid & (labels < num_classes)) / count,
    }


def mask_loss(
    logits: Tensor, targets: Tensor, valid: Tensor, *, count: Tensor | None = None
) -> dict[str, Tensor]:
    """Score the masks of the foreground samples (Mask R-CNN, section 3).

    Args:
        logits: (B, S, M, M), of each sample's true class.
        targets: (B, S, M, M) in [0, 1], what the true mask covers of each cell.
        valid: (B, S) bool; none valid gives zero.
        count: scalar, mean number of valid samples of a step's parts; None: of these.

    Returns:
        `mask`: binary cross entropy, mean over cells and valid samples.
    """
    error = F.binary_cross_entropy_with_logits(
        at_least_float32(logits), targets, reduction="none"
    ).mean(dim=(2, 3))
    samples = count_samples(valid) if count is None else _mean_count(count)
    return {"mask": masked_sum(error, valid) / samples}


def objectness_loss(logits: Tensor, is_fg: Tensor) -> Tensor:
    """Return the binary cross entropy of each of `logits` (B, S)."""
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, is_fg.to(logits.dtype), reduction="none")


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of `values` where `mask` (of the same shape) holds."""
    return torch.where(mask, values, 0).sum()


def count_samples(valid: Tensor) -> Tensor:
    """Return the number of samples that losses are divided by, from `valid` (B, S) bool."""
    return _mean_count(valid.sum().float())


def _mean_count(count: Tensor) -> Tensor:
    # Above one sample alone the mean may be below one; without any, zero is divided.
    return mean_over_ranks(count).clamp(min=1e-6)
