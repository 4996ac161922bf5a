"""How a picture is tested: views of it, the boxes found in each, and one box made of them.

B pictures of one shape, T classes asked for of each, M candidates over all views. Frames: a view's
pixels, and shares of the whole picture, in which boxes of all views meet (axis by axis the scales
differ, but no overlap does).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.classification.views import resize_short_side
from detection.localization.config import EvaluationConfig
from detection.localization.localizer import Localizer
from detection.models.proposals import thin_out
from detection.ops.box_coder import decode_boxes
from detection.ops.boxes import box_area, box_iou, mirror_boxes
from detection.structures import ImageBatch, Proposals
from engine.errors import UserError


@dataclass(frozen=True)
class _View:
    """pixels: (B, 3, h, w). corner: x, y of its top left in the picture, of `size` (H, W) there."""

    pixels: Tensor
    corner: tuple[int, int]
    size: tuple[int, int]


@torch.no_grad()
def localize(
    model: Localizer, images: ImageBatch, classes: Tensor, *, config: EvaluationConfig
) -> tuple[Tensor, Tensor]:
    """Find the box of each class that is asked for.

    Args:
        model: in evaluation mode.
        images: pictures of one shape, without padding.
        classes: (B, T) int64.
        config: views and merging.

    Returns:
        boxes (B, T, 4) xyxy in original pixels, scores (B, T) in [0, 1].

    Raises:
        UserError: the pictures are smaller than the crop.
    """
    boxes, scores = find_candidates(model, images.pixels, classes, config=config)
    best, scores = merge_candidates(boxes, scores, config=config)
    # Clipped as late as this: a mean of boxes each cut at the border would lie inside of it.
    return best.clamp(0, 1) * images.original_sizes.flip(1).repeat(1, 2)[:, None], scores


@torch.no_grad()
def propose(
    model: Localizer,
    images: ImageBatch,
    classes: Tensor,
    *,
    config: EvaluationConfig,
    nms_thresh: float,
    count: int,
) -> Proposals:
    """Find the best boxes of one class of each picture, in the pixels of `images`.

    Args:
        model: in evaluation mode.
        images: pictures of one shape, without padding.
        classes: (B,) int64.
        config: views.
        nms_thresh: IoU above which the lower-scored one goes.
        count: boxes for each picture, at most.
    """
    boxes, scores = find_candidates(model, images.pixels, classes[:, None], config=config)
    boxes = boxes[:, 0].clamp(0, 1) * images.sizes.flip(1).repeat(1, 2)[:, None]
    scores = scores[:, 0]
    one_group = torch.zeros_like(scores, dtype=torch.int64)
    has_area = box_area(boxes) > 0
    return thin_out(boxes, scores, one_group, has_area, nms_thresh=nms_thresh, topk=count)


def find_candidates(
    model: Localizer, pixels: Tensor, classes: Tensor, *, config: EvaluationConfig
) -> tuple[Tensor, Tensor]:
    """Return the best boxes of all views and their scores, (B, T, M, 4) and (B, T, M).

    Boxes are in shares of the picture, and may reach beyond it.
    """
    found = []
    for view in _views(pixels, config):
        for mirrored in (False, True) if config.mirror else (False,):
            output = model(view.pixels.flip(3) if mirrored else view.pixels, classes)
            count = min(config.candidates, output.logits.shape[1])
            logits, idxs = output.logits.transpose(1, 2).topk(count, dim=2)  # (B, T, M)
            deltas = output.deltas.transpose(1, 2)
            deltas = torch.take_along_dim(deltas, idxs[..., None], dim=2)
            boxes = decode_boxes(deltas, output.anchors[idxs])
            found.append((_in_picture(boxes, view, mirrored=mirrored), logits.sigmoid()))
    return torch.cat([boxes for boxes, _ in found], 2), torch.cat([s for _, s in found], 2)


def merge_candidates(
    boxes: Tensor, scores: Tensor, *, config: EvaluationConfig
) -> tuple[Tensor, Tensor]:
    """Make one box of candidates (..., M, 4) with scores (..., M): (..., 4) and (...,)."""
    best_scores, best = scores.max(dim=-1, keepdim=True)
    chosen = torch.take_along_dim(boxes, best[..., None], dim=-2)  # (..., 1, 4)
    if config.merge == "vote":
        overlaps = box_iou(chosen, boxes)[..., 0, :]
        # the best one always votes: an empty box overlaps not even itself
        votes = (overlaps >= config.vote_iou_thresh).scatter(-1, best, True)
        weights = scores * votes
        weights = weights.clamp(min=torch.finfo(weights.dtype).tiny) * votes
        weights = weights / weights.sum(dim=-1, keepdim=True)
        chosen = (boxes * weights[..., None]).sum(dim=-2, keepdim=True)
    return chosen[..., 0, :], best_scores[..., 0]


def _views(pixels: Tensor, config: EvaluationConfig) -> Iterator[_View]:
    """Yield views one after the other, so that memory holds the activations of one."""
    height, width = pixels.shape[2:]
    if config.view == "center":
        crop = config.crop
        if min(height, width) < crop:
            raise UserError(
                f"evaluation.crop: expected at most the pictures' sides ({height} x {width}), "
                f"got {crop}"
            )
        top, left = (height - crop) // 2, (width - crop) // 2
        centre = pixels[:, :, top : top + crop, left : left + crop]
        yield _View(centre, (left, top), (height, width))
        return
    for scale in config.scales:
        resized = resize_short_side(pixels, scale)
        yield _View(resized, (0, 0), (resized.shape[2], resized.shape[3]))


def _in_picture(boxes: Tensor, view: _View, *, mirrored: bool) -> Tensor:
    """Return boxes (B, T, M, 4) of a view's pixels as shares of the picture."""
    if mirrored:
        boxes = mirror_boxes(boxes, view.pixels.shape[3])
    left, top = view.corner
    height, width = view.size
    # by numbers: a tensor of them would be a copy to the device, which waits
    x, y = (boxes[..., 0::2] + left) / width, (boxes[..., 1::2] + top) / height
    return torch.stack([x, y], dim=-1).flatten(-2)
