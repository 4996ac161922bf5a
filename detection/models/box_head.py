"""Box head of Faster R-CNN: class logits and box deltas of pooled RoIs, and their detections.

B images, R RoIs per image, N = B * R RoIs of a batch, K classes, M candidates (pairs of RoI and
class) that enter NMS, D detections per image.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.kernels.pooling import mean_over_cells
from detection.config import RoIConfig
from detection.ops.box_coder import BoxWeights, decode_boxes
from detection.ops.boxes import clip_boxes, take_boxes
from detection.ops.masks import paste_mask
from detection.ops.nms import nms_keep
from detection.structures import Detections, ImageBatch, Proposals, RunLengthMasks

MIN_SIDE = 1e-2  # pixels; detections with a shorter side are dropped, as in torchvision


class C4BoxHead(nn.Module):
    """Global average pooling of conv5's output on each RoI; conv5 is part of the backbone."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (N, C) from (N, C, h, w)."""
        return mean_over_cells(pooled)


class FPNBoxHead(nn.Module):
    """Two fully connected layers on each pooled RoI (FPN, section 4.2)."""

    def __init__(self, in_channels: int, *, resolution: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * resolution**2, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (N, hidden_dim) from (N, C, resolution, resolution)."""
        return F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))


class BoxPredictor(nn.Module):
    """The two output layers: class logits (background last) and a box for each class."""

    def __init__(self, in_dim: int, *, num_classes: int) -> None:
        super().__init__()
        self.class_logits = nn.Linear(in_dim, num_classes + 1)
        self.deltas = nn.Linear(in_dim, num_classes * 4)
        # Small weights: before training the boxes are the proposals (Fast R-CNN, section 2.3).
        for layer, std in ((self.class_logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (N, K+1) and deltas (N, K, 4) from (N, in_dim), float32."""
        class_logits: Tensor = self.class_logits(hidden)
        deltas: Tensor = self.deltas(hidden)
        # (N, K * 4) -> (N, K, 4): the four deltas of a class are adjacent outputs
        return class_logits.float(), deltas.unflatten(1, (-1, 4)).float()


class BoxStage(nn.Module):
    """One stage of the region head: a box head and its two output layers."""

    def __init__(self, box_head: C4BoxHead | FPNBoxHead, box_predictor: BoxPredictor) -> None:
        super().__init__()
        self.box_head = box_head
        self.box_predictor = box_predictor

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (N, K+1) and deltas (N, K, 4) from pooled RoIs (N, C, h, w)."""
        outputs: tuple[Tensor, Tensor] = self.box_predictor(self.box_head(pooled))
        return outputs


class Selection(NamedTuple):
    """The detections of a batch on its device, by falling score.

    boxes: (B, D, 4) network-input pixels. scores: (B, D), -1 for rows without a detection.
    labels: (B, D).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def without_empty_rows(self) -> "Selection":
        """Return the first rows, as many as the image with the most detections has."""
        count = int((self.scores >= 0).sum(dim=1).max())  # detections come first in every row
        return Selection(*(values[:, :count] for values in self))


@torch.no_grad()
def refine_boxes(
    class_logits: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    sizes: Tensor,
    *,
    box_weights: BoxWeights,
) -> Tensor:
    """Return the RoIs of the next stage: each RoI moved by the deltas of its best class.

    Args:
        class_logits: (B, R, K+1), background last. Background is never the best class.
        deltas: (B, R, K, 4) relative to the RoIs.
        boxes: (B, R, 4) the RoIs, network-input pixels.
        sizes: (B, 2) height and width of the images before padding.
        box_weights: scale of the deltas.
    """
    labels = class_logits[..., :-1].argmax(dim=2)
    # (B, R, K, 4) indexed by (B, R, 1, 1) -> (B, R, 1, 4) -> (B, R, 4)
    best_deltas = torch.take_along_dim(deltas, labels[..., None, None], dim=2)[:, :, 0]
    return clip_boxes(decode_boxes(best_deltas, boxes, weights=box_weights), sizes)


@torch.no_grad()
def select_detections(
    class_logits: Tensor,
    deltas: Tensor,
    proposals: Proposals,
    images: ImageBatch,
    *,
    box_weights: BoxWeights,
    config: RoIConfig,
) -> Selection:
    """Select the detections of each image from the head's output, with NMS for each class.

    Args:
        class_logits: (B, R, K+1), background last.
        deltas: (B, R, K, 4) relative to the proposals.
        proposals: the RoIs; those not valid give no detection.
        images: only their sizes are used.
        box_weights: scale of the deltas.
        config: which candidates to keep; scores at or below `score_thresh` are dropped.
    """
    num_rois, num_classes = deltas.shape[1:3]
    scores = class_logits.softmax(dim=2)[..., :-1]  # (B, R, K), without background
    wanted = (scores > config.score_thresh) & proposals.valid[..., None]
    # The scores of a RoI sum to 1, so at most 1 / score_thresh of its classes pass. Taking only so
    # many saves work below and never drops a candidate.
    per_roi = num_classes
    if config.score_thresh > 0:
        per_roi = min(num_classes, int(1 / config.score_thresh))
    # (B, R, K) -> (B, R * K) -> (B, M); -1 is below every score, so unwanted pairs come last
    scores = scores.masked_fill(~wanted, -1.0).flatten(1)
    # A stable sort instead of a top-k, which does not define the order of equal scores, as of 1.0.
    scores, idxs = scores.sort(dim=1, descending=True, stable=True)
    scores, idxs = scores[:, : num_rois * per_roi], idxs[:, : num_rois * per_roi]

    # A flat index is roi * K + class.
    labels, rois = idxs % num_classes, idxs // num_classes  # (B, M)
    deltas = take_boxes(deltas.flatten(1, 2), idxs)  # (B, M, 4)
    roi_boxes = take_boxes(proposals.boxes, rois)  # (B, M, 4)
    boxes = clip_boxes(decode_boxes(deltas, roi_boxes, weights=box_weights), images.sizes)
    large = (boxes[..., 2:] - boxes[..., :2] >= MIN_SIDE).all(dim=2)
    max_detections = config.max_detections
    keep = nms_keep(
        boxes,
        scores,
        labels,
        (scores >= 0) & large,
        iou_thresh=config.nms_thresh,
        max_kept=max_detections,
    )
    # Moves the kept candidates to the front. The sort is stable, so equal scores stay in order.
    scores, order = scores.masked_fill(~keep, -1.0).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :max_detections], order[:, :max_detections]  # (B, D)
    boxes = take_boxes(boxes, order)
    return Selection(boxes, scores, labels.gather(1, order))


@torch.no_grad()
def to_detections(
    selection: Selection, images: ImageBatch, *, masks: Tensor | None = None, aligned: bool = True
) -> list[Detections]:
    """Return each image's detections (possibly none) in original pixels, on the CPU.

    Args:
        selection: detections in network-input pixels.
        images: only their sizes are used.
        masks: (B, at most D, cells, cells) float32 probabilities over the boxes; at least as many
            rows as any image has detections.
        aligned: see `paste_mask`.
    """
    # (height, width) ratios -> (B, 4) factors of x1, y1, x2, y2
    scale = (images.original_sizes / images.sizes).flip(1).repeat(1, 2)
    boxes = clip_boxes(selection.boxes * scale[:, None], images.original_sizes)
    columns = [boxes, selection.scores[..., None], selection.labels[..., None]]
    # (B, D, 6) in one transfer from the device; a float32 holds every label exactly
    packed = torch.cat(columns, dim=2).cpu()
    cells = None if masks is None else masks.cpu().numpy()
    detections = []
    for row, (image, (height, width)) in enumerate(
        zip(packed, images.original_sizes.tolist(), strict=True)
    ):
        rows = image[image[:, 4] >= 0]  # column 4 is the score; -1 marks an empty row
        pasted = None
        if cells is not None:
            # not strict: `cells` has the rows of the image with the most detections
            codes = [
                paste_mask(mask, box, (height, width), aligned=aligned)
                for mask, box in zip(cells[row], rows[:, :4].numpy(), strict=False)
            ]
            pasted = RunLengthMasks((height, width), tuple(codes))
        detections.append(Detections(rows[:, :4], rows[:, 4], rows[:, 5].long(), pasted))
    return detections
