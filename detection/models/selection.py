"""Selection of detections from the predictions of a region head: threshold, NMS, box voting.

B images, R RoIs per image, K classes, M candidates (pairs of RoI and class) that enter NMS,
D detections per image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detection.config import RoIConfig
from detection.ops.box_coder import BoxWeights, decode_boxes
from detection.ops.boxes import box_factors, clip_boxes, take_boxes
from detection.ops.masks import paste_mask
from detection.ops.nms import nms_keep
from detection.ops.voting import vote_boxes
from detection.structures import Detections, ImageBatch, Proposals, RunLengthMasks

MIN_SIDE = 1e-2  # pixels; boxes with a shorter side are dropped before NMS, as in torchvision


class BoxPredictions(NamedTuple):
    """What a region head predicts for the RoIs of a batch: for each class a score and a box.

    scores: (B, R, K) in [0, 1], without background. boxes: (B, R, K, 4) network-input pixels,
    clipped to the image. valid: (B, R) bool, False for padding.
    """

    scores: Tensor
    boxes: Tensor
    valid: Tensor

    @classmethod
    def joined(cls, parts: Sequence["BoxPredictions"]) -> "BoxPredictions":
        """Return the union of predictions for the same images, in the order of the parts."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))

    @classmethod
    def averaged(cls, parts: Sequence["BoxPredictions"]) -> "BoxPredictions":
        """Return the mean scores and the mean boxes of predictions for the same RoIs."""
        if len(parts) == 1:
            return parts[0]
        scores, boxes, valid = zip(*parts, strict=True)
        return cls(torch.stack(scores).mean(dim=0), torch.stack(boxes).mean(dim=0), valid[0])

    def best_boxes(self) -> Tensor:
        """Return the box of each RoI's best class, (B, R, 4)."""
        labels = self.scores.argmax(dim=2)[..., None]
        # (B, R, K, 4) at (B, R, 1) -> (B, R, 1, 4) -> (B, R, 4)
        return take_boxes(self.boxes, labels)[:, :, 0]


class Selection(NamedTuple):
    """The detections of a batch on its device, by falling score.

    boxes: (B, D, 4) network-input pixels. scores: (B, D), -1 for rows without a detection.
    labels: (B, D).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def without_empty_boxes(self) -> "Selection":
        """Return the detections whose boxes have an area; the rows of the others come last."""
        has_area = (self.boxes[..., 2:] > self.boxes[..., :2]).all(dim=2)
        scores = self.scores.masked_fill(~has_area, -1.0)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return Selection(take_boxes(self.boxes, order), scores, self.labels.gather(1, order))

    def without_empty_rows(self) -> "Selection":
        """Return the first rows, as many as the image with the most detections has."""
        # detections come first in every row
        count = (self.scores >= 0).sum(dim=1).max().item()
        # for an exported program, in which the count is a symbol
        torch._check(count >= 0)
        torch._check(count <= self.scores.shape[1])
        return Selection(*(values[:, :count] for values in self))


def class_scores(class_logits: Tensor) -> Tensor:
    """Return scores (B, R, K) in [0, 1] from logits (B, R, K+1), background last."""
    return class_logits.softmax(dim=2)[..., :-1]


@torch.no_grad()
def decode_predictions(
    scores: Tensor,
    deltas: Tensor,
    proposals: Proposals,
    sizes: Tensor,
    *,
    box_weights: BoxWeights,
) -> BoxPredictions:
    """Return class scores and clipped boxes of every class from the outputs of a region head.

    Args:
        scores: (B, R, K).
        deltas: (B, R, K, 4) relative to the proposals, or (B, R, 1, 4) for all classes.
        proposals: the RoIs.
        sizes: (B, 2) height and width of the images before padding.
        box_weights: scale of the deltas.
    """
    boxes = decode_boxes(deltas, proposals.boxes[:, :, None], weights=box_weights)
    clipped = clip_boxes(boxes.flatten(1, 2), sizes)  # (B, R * K, 4)
    of_classes = clipped.view_as(boxes).expand(*scores.shape, 4)  # no copy
    return BoxPredictions(scores, of_classes, proposals.valid)


@torch.no_grad()
def select_detections(
    predictions: BoxPredictions,
    *,
    config: RoIConfig,
    nms_thresh: float | None = None,
    vote_iou_thresh: float | None = None,
) -> Selection:
    """Select the detections of each image from the predictions, with NMS for each class.

    Args:
        predictions: RoIs that are not valid give no detection.
        config: which candidates to keep; scores at or below `score_thresh` are dropped.
        nms_thresh: replaces that of `config`; None: does not.
        vote_iou_thresh: the detections' boxes are voted on (`vote_boxes`); None: they are not.
    """
    scores, boxes, valid = predictions
    num_rois, num_classes = scores.shape[1:]
    wanted = (scores > config.score_thresh) & valid[..., None]
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

    labels = idxs % num_classes  # (B, M); a flat index is roi * K + class
    boxes = take_boxes(boxes.flatten(1, 2), idxs)  # (B, M, 4)
    large = (boxes[..., 2:] - boxes[..., :2] >= MIN_SIDE).all(dim=2)
    enters = scores >= 0
    if config.drop_empty == "first":
        enters = enters & large
    max_detections = config.max_detections
    keep = nms_keep(
        boxes,
        scores,
        labels,
        enters,
        iou_thresh=config.nms_thresh if nms_thresh is None else nms_thresh,
        max_kept=max_detections,
    )
    # Moves the kept candidates to the front. The sort is stable, so equal scores stay in order.
    kept_scores, order = scores.masked_fill(~keep, -1.0).sort(dim=1, descending=True, stable=True)
    kept_scores, order = kept_scores[:, :max_detections], order[:, :max_detections]  # (B, D)
    found = Selection(take_boxes(boxes, order), kept_scores, labels.gather(1, order))
    if config.drop_empty == "last":
        found = found.without_empty_boxes()
    if vote_iou_thresh is None:
        return found
    weights = scores.where(large, 0.0)
    voted = vote_boxes(
        found.boxes, found.labels, boxes, weights, labels, iou_thresh=vote_iou_thresh
    )
    return found._replace(boxes=voted)


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
    scale = box_factors(images.sizes, images.original_sizes)  # to pixels of the file
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
