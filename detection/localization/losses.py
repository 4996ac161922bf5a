"""Loss of the first stage of localization. B images, S sampled anchors per image."""

from typing import Literal

from torch import Tensor

from detection.losses import count_samples, masked_sum, objectness_loss, smooth_l1
from detection.ops.box_coder import decode_boxes, encode_boxes
from detection.ops.boxes import generalized_iou
from detection.ops.precision import at_least_float32


def localization_loss(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    gt_boxes: Tensor,
    is_fg: Tensor,
    valid: Tensor,
    *,
    box_loss: Literal["smooth_l1", "giou"],
    beta: float,
) -> dict[str, Tensor]:
    """Compute the losses of the annotated class on the sampled anchors (appendix C).

    The outputs of other classes get no gradient, neither boxes nor logits. Half of the eight
    sampled anchors of an image are positive. Training all 1,000 logits on each anchor would set
    four positive terms against 7,996 negative ones, which defeats this balance.

    Args:
        logits: (B, S), whether an anchor contains the image's class.
        deltas: (B, S, 4), predicted.
        anchors: (B, S, 4) xyxy.
        gt_boxes: (B, S, 4) xyxy, the box matched to each anchor; used for foreground only.
        is_fg: (B, S) bool.
        valid: (B, S) bool. If none is valid, the losses are zero.
        box_loss: smooth L1 of the deltas summed over coordinates, or 1 - generalized IoU.
        beta: difference at which smooth L1 turns linear.

    Returns:
        `localization_class`: binary cross entropy, mean over samples. `localization_box`: sum over
        foreground samples, divided by the number of foreground and background samples.
    """
    if box_loss == "giou":
        # (B, S): one loss per sample in both cases
        box = 1 - generalized_iou(decode_boxes(deltas, anchors), at_least_float32(gt_boxes))
    else:
        targets = encode_boxes(gt_boxes, anchors)
        box = smooth_l1(at_least_float32(deltas), targets, beta=beta).sum(dim=-1)
    # the divisor of both losses
    count = count_samples(valid)
    return {
        "localization_class": masked_sum(objectness_loss(logits, is_fg), valid) / count,
        "localization_box": masked_sum(box, valid & is_fg) / count,
    }
