"""Multi-view localization: views of an image, the boxes found in each, merged into one box.

B images of one shape, T requested classes per image, M candidate boxes over all views. Boxes of a
view are in its pixels; boxes of different views are compared as fractions of the image's sides.
IoU is the same in both, because it does not change when an axis is scaled.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.classification.views import resize_short_side
from detection.localization.config import EvaluationConfig
from detection.localization.localizer import Localizer
from detection.models.proposals import select_by_nms
from detection.ops.box_coder import decode_boxes
from detection.ops.boxes import box_area, flip_boxes, take_boxes
from detection.ops.voting import vote_boxes
from detection.structures import ImageBatch, Proposals
from engine.errors import UserError


@dataclass(frozen=True)
class View:
    """One view of a batch of images.

    pixels: (B, 3, h, w). corner: x, y of the view's top left corner in the image. size: (H, W) of
    the whole image at the view's scale. In an exported graph both are scalars.
    """

    pixels: Tensor
    corner: tuple[int | Tensor, int | Tensor]
    size: tuple[int | Tensor, int | Tensor]


@torch.no_grad()
def localize(
    model: Localizer, images: ImageBatch, classes: Tensor, *, config: EvaluationConfig
) -> tuple[Tensor, Tensor]:
    """Find one box for each requested class.

    Args:
        model: in evaluation mode.
        images: images of one shape, without padding.
        classes: (B, T) int64.
        config: views and merging.

    Returns:
        boxes (B, T, 4) xyxy in original pixels, scores (B, T) in [0, 1].

    Raises:
        UserError: the images are smaller than the crop.
    """
    boxes, scores = find_candidates(model, images.pixels, classes, config=config)
    best, scores = merge_candidates(boxes, scores, config=config)
    # sizes are (height, width): flip and repeat give width, height, width, height.
    # Clip after merging: the mean of boxes that are clipped first would not reach the border.
    return best.clamp(0, 1) * images.original_sizes.flip(1).repeat(1, 2)[:, None], scores


def propose(
    boxes: Tensor, scores: Tensor, sizes: Tensor, *, nms_thresh: float, count: int
) -> Proposals:
    """Make proposals in network-input pixels from the candidates of one class per image.

    Args:
        boxes: (B, M, 4), as of `find_candidates`.
        scores: (B, M).
        sizes: (B, 2) height and width of the network's input.
        nms_thresh: IoU above which NMS removes the lower-scored box.
        count: maximum number of boxes per image.
    """
    boxes = boxes.clamp(0, 1) * sizes.flip(1).repeat(1, 2)[:, None]
    # NMS compares all boxes of an image, because all are of one class
    one_group = torch.zeros_like(scores, dtype=torch.int64)
    has_area = box_area(boxes) > 0
    return select_by_nms(boxes, scores, one_group, has_area, nms_thresh=nms_thresh, topk=count)


@torch.no_grad()
def find_candidates(
    model: Localizer, pixels: Tensor, classes: Tensor, *, config: EvaluationConfig
) -> tuple[Tensor, Tensor]:
    """Return the highest-scored boxes of all views.

    Returns:
        boxes (B, T, M, 4), xyxy as fractions of the image's sides, which may reach outside 0..1;
        scores (B, T, M) in [0, 1].
    """
    found = []
    for view in _views(pixels, config):
        for mirrored in (False, True) if config.mirror else (False,):
            found.append(
                candidates_of(model, view, classes, count=config.candidates, mirrored=mirrored)
            )
    # dim 2 is M: candidates of all views side by side
    return torch.cat([boxes for boxes, _ in found], 2), torch.cat([s for _, s in found], 2)


def candidates_of(
    model: Localizer, view: View, classes: Tensor, *, count: int, mirrored: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the highest-scored boxes of one view, at most `count`; see `find_candidates`."""
    output = model(view.pixels.flip(3) if mirrored else view.pixels, classes)
    logits = output.logits.transpose(1, 2)  # (B, T, N)
    num_anchors = logits.shape[2]
    if torch.compiler.is_exporting():
        # N is a symbol, so that there is no min(): anchors that do not exist have a score of 0
        logits = F.pad(logits, (0, count), value=-torch.inf)
    else:
        count = min(count, num_anchors)
    logits, idxs = logits.topk(count, dim=2)  # (B, T, M)
    idxs = idxs.clamp(max=num_anchors - 1)
    # (B, T, N, 4), then the deltas of the chosen anchors (B, T, M, 4)
    deltas = take_boxes(output.deltas.transpose(1, 2), idxs)
    boxes = decode_boxes(deltas, output.anchors[idxs])
    return _in_image(boxes, view, mirrored=mirrored), logits.sigmoid()


def merge_candidates(
    boxes: Tensor, scores: Tensor, *, config: EvaluationConfig
) -> tuple[Tensor, Tensor]:
    """Merge candidate boxes into one.

    Args:
        boxes: (..., M, 4), with one leading dimension or more.
        scores: (..., M).
        config: `merge` and `vote_iou_thresh`.

    Returns:
        the merged box (..., 4) and the highest score (...,).
    """
    # best: (..., 1) index of the box with the highest score
    best_scores, best = scores.max(dim=-1, keepdim=True)
    chosen = take_boxes(boxes, best)  # (..., 1, 4)
    if config.merge == "vote":
        rows, row_scores = boxes.flatten(0, -3), scores.flatten(0, -2)  # (B, M, 4), (B, M)
        labels = torch.zeros_like(row_scores, dtype=torch.int64)  # all of one class
        voted = vote_boxes(
            chosen.flatten(0, -3),
            labels[:, :1],
            rows,
            row_scores,
            labels,
            iou_thresh=config.vote_iou_thresh,
        )
        chosen = voted.reshape(chosen.shape)
    return chosen[..., 0, :], best_scores[..., 0]


def _views(pixels: Tensor, config: EvaluationConfig) -> Iterator[View]:
    """Yield views one by one, so that memory holds the activations of only one."""
    height, width = pixels.shape[2:]
    if config.view == "center":
        crop = config.crop
        if min(height, width) < crop:
            raise UserError(
                f"evaluation.crop: expected at most the images' sides ({height} x {width}), "
                f"got {crop}"
            )
        # the central crop; its corner converts boxes back to the image
        top, left = (height - crop) // 2, (width - crop) // 2
        center = pixels[:, :, top : top + crop, left : left + crop]
        yield View(center, (left, top), (height, width))
        return
    for scale in config.scales:
        resized = resize_short_side(pixels, scale)
        yield View(resized, (0, 0), (resized.shape[2], resized.shape[3]))


def _in_image(boxes: Tensor, view: View, *, mirrored: bool) -> Tensor:
    """Convert boxes (B, T, M, 4) from a view's pixels to fractions of the image's sides."""
    if mirrored:  # first undo the flip, in the view's own pixels
        boxes = flip_boxes(boxes, view.pixels.shape[3])
    left, top = view.corner
    height, width = view.size
    # Python numbers, not a tensor: copying a tensor to the GPU would make the host wait
    x, y = (boxes[..., 0::2] + left) / width, (boxes[..., 1::2] + top) / height
    # x and y are (B, T, M, 2) of both corners: interleave them to x1, y1, x2, y2
    return torch.stack([x, y], dim=-1).flatten(-2)
