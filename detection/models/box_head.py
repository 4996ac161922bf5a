"""The region head: from pooled RoIs to class logits and deltas, and from those to detections.

B images, R RoIs an image, K classes, M = candidates (RoI, class) that enter NMS, D detections.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detection.ops.box_coder import BoxWeights, decode_boxes
from detection.ops.boxes import clip_boxes
from detection.ops.nms import nms_keep
from detection.structures import Detections, ImageBatch, Proposals

MIN_SIDE = 1e-2  # pixels; smaller detections go, as in torchvision


@dataclass(frozen=True)
class DetectSettings:
    """Which candidates become detections.

    score_thresh: scores at or below go. nms_thresh: IoU above which the lower-scored one of a
    class goes. max_detections: most of an image.
    """

    score_thresh: float
    nms_thresh: float
    max_detections: int


class C4BoxHead(nn.Module):
    """Global average pooling of conv5's output on each RoI; conv5 itself stays in the backbone."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (N, C) from (N, C, h, w)."""
        return pooled.mean(dim=(2, 3))


class FPNBoxHead(nn.Module):
    """Two hidden layers on each pooled RoI (FPN, section 4.2)."""

    def __init__(self, in_channels: int, *, resolution: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * resolution**2, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (N, hidden_dim) from (N, C, resolution, resolution)."""
        return F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))


class BoxPredictor(nn.Module):
    """The two output layers: classes, background last, and a box for each class."""

    def __init__(self, in_dim: int, *, num_classes: int) -> None:
        super().__init__()
        self.class_logits = nn.Linear(in_dim, num_classes + 1)
        self.deltas = nn.Linear(in_dim, num_classes * 4)
        # Small, so that the first boxes are the proposals themselves (Fast R-CNN, section 2.3).
        for layer, std in ((self.class_logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (N, K+1) and deltas (N, K, 4) from (N, in_dim), float32."""
        class_logits: Tensor = self.class_logits(hidden)
        deltas: Tensor = self.deltas(hidden)
        return class_logits.float(), deltas.unflatten(1, (-1, 4)).float()


@torch.no_grad()
def make_detections(
    class_logits: Tensor,
    deltas: Tensor,
    proposals: Proposals,
    images: ImageBatch,
    *,
    box_weights: BoxWeights,
    settings: DetectSettings,
) -> list[Detections]:
    """Turn the head's output into detections, each class by itself.

    Args:
        class_logits: (B, R, K+1), background last.
        deltas: (B, R, K, 4) from the proposals.
        proposals: the RoIs; those not valid give nothing.
        images: for the sizes of the pictures.
        box_weights: scale of the deltas.
        settings: which candidates to keep.

    Returns:
        for each image its detections in original pixels, on the CPU; maybe none.
    """
    num_rois, num_classes = deltas.shape[1:3]
    scores = class_logits.softmax(dim=2)[..., :-1]
    wanted = (scores > settings.score_thresh) & proposals.valid[..., None]
    # The scores of a RoI sum to 1, so at most 1 / score_thresh of its classes pass: this top-k
    # shortens what follows and never drops a candidate.
    per_roi = num_classes
    if settings.score_thresh > 0:
        per_roi = min(num_classes, int(1 / settings.score_thresh))
    scores, idxs = scores.masked_fill(~wanted, -1.0).flatten(1).topk(num_rois * per_roi, dim=1)

    labels, rois = idxs % num_classes, idxs // num_classes  # (B, M)
    deltas = torch.take_along_dim(deltas.flatten(1, 2), idxs[..., None], dim=1)
    roi_boxes = torch.take_along_dim(proposals.boxes, rois[..., None], dim=1)
    boxes = clip_boxes(decode_boxes(deltas, roi_boxes, weights=box_weights), images.sizes)
    large = (boxes[..., 2:] - boxes[..., :2] >= MIN_SIDE).all(dim=2)
    keep = nms_keep(boxes, scores, labels, (scores >= 0) & large, iou_thresh=settings.nms_thresh)

    scores, order = scores.masked_fill(~keep, -1.0).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, : settings.max_detections], order[:, : settings.max_detections]
    boxes = torch.take_along_dim(boxes, order[..., None], dim=1)
    scale = (images.original_sizes / images.sizes).flip(1).repeat(1, 2)  # (B, 4): w, h, w, h
    boxes = clip_boxes(boxes * scale[:, None], images.original_sizes)
    columns = [boxes, scores[..., None], labels.gather(1, order)[..., None]]
    packed = torch.cat(columns, dim=2).cpu()  # one transfer; a float32 holds any label exactly
    return [
        Detections(boxes=rows[:, :4], scores=rows[:, 4], labels=rows[:, 5].long())
        for image in packed
        for rows in [image[image[:, 4] >= 0]]
    ]
