"""Losses of Faster R-CNN and Mask R-CNN, as scalars. Always computed in float32 or wider.

B images, S samples per image, K classes, M cells along a mask's side.

Sums are divided by the number of valid samples. Across processes the mean of this number is used,
so that averaging the gradients of all processes gives the gradient of one process with the whole
batch. The parts of a step with `loop.accumulate` are averaged in the same way. The number of
sampled anchors and regions is fixed. The number of masks is not, so `count` gives its mean over the
parts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detection.ops.precision import at_least_float32
from engine.distributed import mean_over_ranks


def smooth_l1(pred: Tensor, target: Tensor, *, beta: float) -> Tensor:
    """Return the element-wise error: quadratic below `beta`, linear above; L1 if `beta` is 0."""
    error = (pred - target).abs()
    if beta == 0:
        return error  # the quadratic branch would divide by 0
    # the two branches meet at `beta` with value beta / 2 and slope 1
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
    """Return the losses of the region proposal network on its sampled anchors.

    Args:
        objectness_logits: (B, S).
        deltas: (B, S, 4), predicted.
        target_deltas: (B, S, 4); only foreground rows are used.
        is_fg: (B, S) bool.
        valid: (B, S) bool; if none is valid, the losses are 0.
        beta: where smooth L1 becomes linear.

    Returns:
        `rpn_objectness`: binary cross entropy, mean over samples. `rpn_box`: smooth L1, summed over
        coordinates and foreground samples, divided by the number of all samples.
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
    """Return the losses of the region head on its sampled proposals.

    Args:
        class_logits: (B, S, K + 1), background last.
        deltas: (B, S, K, 4), predicted for each class; only those of the true class are used. Or
            (B, S, 1, 4), the same for all classes.
        labels: (B, S) int64 in 0..K; K is background.
        target_deltas: (B, S, 4); only foreground rows are used.
        valid: (B, S) bool; if none is valid, the losses are 0.
        beta: where smooth L1 becomes linear.

    Returns:
        `roi_class`: cross entropy, mean over samples. `roi_box`: smooth L1, summed over coordinates
        and foreground samples, divided by the number of all samples.
    """
    num_classes = class_logits.shape[2] - 1
    # cross_entropy takes (B * S, K + 1) and (B * S,); the result is (B, S) again
    classification = F.cross_entropy(
        at_least_float32(class_logits).flatten(0, 1), labels.flatten(), reduction="none"
    ).view_as(labels)
    # The deltas of the true class: (B, S, K, 4) indexed by (B, S, 1, 4) -> (B, S, 4). Background
    # (label K) has none; the clamp makes its index valid, and the mask below drops its error.
    class_idxs = labels.clamp(max=deltas.shape[2] - 1)[..., None, None].expand(-1, -1, 1, 4)
    true_deltas = at_least_float32(deltas.gather(2, class_idxs)[:, :, 0])
    box = smooth_l1(true_deltas, target_deltas, beta=beta).sum(dim=-1)
    count = count_samples(valid)
    return {
        "roi_class": masked_sum(classification, valid) / count,
        "roi_box": masked_sum(box, valid & (labels < num_classes)) / count,
    }


def mask_loss(
    logits: Tensor, targets: Tensor, valid: Tensor, *, count: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the mask loss on the foreground samples (Mask R-CNN, section 3).

    Args:
        logits: (B, S, M, M), of each sample's true class.
        targets: (B, S, M, M) in [0, 1], the share of each cell that the true mask covers.
        valid: (B, S) bool; if none is valid, the loss is 0.
        count: scalar, mean number of valid samples over the parts of a step; None: the number here.

    Returns:
        `mask`: binary cross entropy, mean over cells and valid samples.
    """
    error = F.binary_cross_entropy_with_logits(
        at_least_float32(logits), targets, reduction="none"
    ).mean(dim=(2, 3))  # (B, S)
    samples = count_samples(valid) if count is None else _mean_count(count)
    return {"mask": masked_sum(error, valid) / samples}


def weighted(losses: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
    """Return every loss times the weight of the same name."""
    return {name: value * weights[name] for name, value in losses.items()}


def objectness_loss(logits: Tensor, is_fg: Tensor) -> Tensor:
    """Return the binary cross entropy of each of `logits` (B, S)."""
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, is_fg.to(logits.dtype), reduction="none")


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of `values` where `mask` (of the same shape) is True."""
    # where, not a product: 0 * NaN of a masked row would be NaN
    return torch.where(mask, values, 0).sum()


def count_samples(valid: Tensor) -> Tensor:
    """Return the number of samples that losses are divided by, from `valid` (B, S) bool."""
    return _mean_count(valid.sum().float())


def _mean_count(count: Tensor) -> Tensor:
    # Not min=1: the mean over processes may be below 1 although one of them has a sample. The
    # minimum matters only if there are no samples at all; then the sum is 0, and so is the loss.
    return mean_over_ranks(count).clamp(min=1e-6)
