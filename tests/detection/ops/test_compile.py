import pytest
import torch
from torch import Tensor

from detection.losses import roi_loss, rpn_loss
from detection.ops.box_coder import decode_boxes, encode_boxes
from detection.ops.boxes import clip_boxes, xywh_to_xyxy, xyxy_to_xywh
from detection.ops.kernels.neighbours import pick_neighbours
from detection.ops.matching import match_boxes
from detection.ops.nms import nms_keep
from detection.ops.roi_pool import pool_rois
from detection.ops.sampling import sample_matches
from engine.random_keys import random_keys


def step(features: list[Tensor], gt: Tensor, anchors: Tensor, seeds: Tensor) -> list[Tensor]:
    """Every operation once, in about the order of a training step."""
    valid = torch.ones_like(gt[..., 0], dtype=torch.bool)
    matched_idxs, labels = match_boxes(
        gt,
        valid,
        ~valid,
        anchors,
        fg_thresh=0.5,
        bg_thresh=0.3,
        allow_low_quality=True,
        crowd_ioa_thresh=0.5,
    )
    keys = random_keys(seeds, labels.shape[1], stream=0)
    idxs, is_fg, is_sample = sample_matches(labels, keys, num_samples=16, fg_fraction=0.5)
    gt_idxs = matched_idxs.gather(1, idxs)
    boxes = anchors[idxs]
    deltas = encode_boxes(gt.gather(1, gt_idxs[..., None].expand(-1, -1, 4)), boxes)
    boxes = clip_boxes(decode_boxes(0.1 * deltas, boxes), gt.new_full((2, 2), 64))
    boxes = xywh_to_xyxy(xyxy_to_xywh(boxes))
    keep = nms_keep(boxes, keys[:, :16].float(), gt_idxs, is_sample, iou_thresh=0.7)
    aligned = pool_rois(features, (4, 8), boxes, kind="roi_align", resolution=3)
    adaptive = pool_rois(features, (4, 8), boxes, kind="roi_align", resolution=3, sampling_ratio=0)
    pooled = pool_rois(features, (4, 8), boxes, kind="roi_pool", resolution=3)
    vectors = (aligned + adaptive + pooled).mean(dim=(2, 3)).view(2, 16, -1)
    cells = idxs % (features[0].shape[2] * features[0].shape[3])
    around = pick_neighbours(features, cells)[0].sum((2, 3))
    losses = rpn_loss(around[..., 0], around[..., :4], deltas, is_fg, is_sample, beta=0.1)
    classes = vectors[..., :4].unflatten(2, (1, 4))
    losses |= roi_loss(vectors[..., :2], classes, 1 - is_fg.long(), deltas, keep, beta=0.1)
    return [*losses.values(), boxes, keep]


@pytest.mark.extended
@pytest.mark.usefixtures("kernels")
def test_all_operations_compile_into_one_graph() -> None:
    features = [torch.randn(2, 64, 64 // s, 64 // s, requires_grad=True) for s in (4, 8)]
    corners = torch.rand(2, 6, 2) * 40
    gt = torch.cat([corners, corners + 5 + torch.rand(2, 6, 2) * 20], dim=-1)
    anchors = gt.flatten(0, 1).repeat(9, 1) + torch.randn(108, 4)
    seeds = torch.tensor([3, 4])
    torch.compiler.reset()  # a compiled graph keeps the kernels that it was compiled with
    expected = step(features, gt, anchors, seeds)
    compiled = torch.compile(step, backend="eager", fullgraph=True)(features, gt, anchors, seeds)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(
        torch.autograd.grad(torch.stack(compiled[:4]).sum(), features),
        torch.autograd.grad(torch.stack(expected[:4]).sum(), features),
    )
