from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detection.models.anchors import AnchorGenerator
from detection.models.proposals import make_proposals
from detection.models.rpn import RPNOutput
from detection.ops.boxes import box_iou
from detection.structures import Proposals
from tests.detection.models.detectors import rpn_config

STRIDES = (16, 32)
NUM_ANCHORS = 3
SMALL = rpn_config(pre_nms_topk=60, post_nms_topk_test=40)


def rpn_output(maps: Sequence[Tensor], sizes: Tensor) -> RPNOutput:
    """Output of an RPN whose convolutions gave `maps` (B, H, W, 3 anchors, 1 logit + 4 deltas)."""
    generator = AnchorGenerator([[32.0], [64.0]], ratios=[0.5, 1.0, 2.0], strides=STRIDES)
    shapes = [(level.shape[1], level.shape[2]) for level in maps]
    rows = torch.cat([level.flatten(1, 3) for level in maps], dim=1)
    return RPNOutput(
        objectness_logits=rows[..., 0],
        deltas=rows[..., 1:],
        anchors=generator(shapes),
        anchor_valid=generator.valid(shapes, sizes, size_divisor=32),
        level_sizes=tuple(height * width * NUM_ANCHORS for height, width in shapes),
    )


def random_maps(batch: int, height: int, width: int) -> list[Tensor]:
    scale = torch.tensor([2.0, 0.3, 0.3, 0.3, 0.3])
    return [
        torch.randn(batch, height // stride, width // stride, NUM_ANCHORS, 5) * scale
        for stride in STRIDES
    ]


def test_batch_equals_one_by_one() -> None:
    sizes = torch.tensor([[96, 128], [60, 100], [33, 128]])
    maps = random_maps(3, 96, 128)
    together = make_proposals(rpn_output(maps, sizes), sizes, config=SMALL, training=False)
    for i in range(3):
        rpn = rpn_output([level[i : i + 1] for level in maps], sizes[i : i + 1])
        alone = make_proposals(rpn, sizes[i : i + 1], config=SMALL, training=False)
        torch.testing.assert_close(together.boxes[i], alone.boxes[0], rtol=0, atol=0)
        torch.testing.assert_close(together.scores[i], alone.scores[0], rtol=0, atol=0)
        torch.testing.assert_close(together.valid[i], alone.valid[0])


def valid_rows(proposals: Proposals, image: int) -> tuple[Tensor, Tensor]:
    valid = proposals.valid[image]
    return proposals.boxes[image][valid], proposals.scores[image][valid]


def test_padding_further_changes_no_proposal() -> None:
    sizes = torch.tensor([[90, 120], [60, 100]])
    maps = random_maps(2, 96, 128)
    wider = random_maps(2, 160, 256)
    for small, large in zip(maps, wider, strict=True):
        large[..., 0] += 5  # what the network sees in the padding looks better than any object
        large[:, : small.shape[1], : small.shape[2]] = small
    # in the second image's rows beyond its own frame, the tight batch holds padding as well
    tight = make_proposals(rpn_output(maps, sizes), sizes, config=SMALL, training=False)
    loose = make_proposals(rpn_output(wider, sizes), sizes, config=SMALL, training=False)
    for image in range(2):
        torch.testing.assert_close(valid_rows(tight, image), valid_rows(loose, image))


def test_proposals_are_sorted_inside_the_image_and_thinned_on_each_level() -> None:
    sizes = torch.tensor([[90, 120], [60, 100]])
    rpn = rpn_output(random_maps(2, 96, 128), sizes)
    proposals = make_proposals(rpn, sizes, config=rpn_config(), training=True)
    for image, (height, width) in enumerate(sizes.tolist()):
        boxes, scores = valid_rows(proposals, image)
        assert (scores.diff() <= 0).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
    invalid = ~proposals.valid
    assert invalid.any()
    assert proposals.boxes[invalid].count_nonzero() == 0
    assert proposals.scores[invalid].count_nonzero() == 0

    only_first_level = rpn.anchor_valid.clone()
    only_first_level[:, rpn.level_sizes[0] :] = False
    rpn = replace(rpn, anchor_valid=only_first_level)
    proposals = make_proposals(rpn, sizes, config=rpn_config(), training=True)
    boxes, _ = valid_rows(proposals, 0)
    assert box_iou(boxes, boxes).fill_diagonal_(0).max() <= 0.7


def test_same_box_on_two_levels_is_kept_twice() -> None:
    sizes = torch.tensor([[32, 32]])
    maps = random_maps(1, 32, 32)
    for level in maps:
        level[..., 1:] = 0
        level[..., 1] = 0.4
    rpn = rpn_output(maps, sizes)
    box = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    rpn = replace(rpn, anchors=box.expand(len(rpn.anchors), 4), deltas=rpn.deltas * 0)
    proposals = make_proposals(rpn, sizes, config=rpn_config(), training=False)
    assert proposals.valid.sum() == 2
    torch.testing.assert_close(proposals.boxes[proposals.valid], box.expand(2, 4))


@pytest.mark.parametrize(
    ("training", "expected"),
    [pytest.param(True, 72 + 18, id="train"), pytest.param(False, 40, id="test")],
)
def test_counts_are_fixed_by_settings_and_shape(training: bool, expected: int) -> None:
    sizes = torch.tensor([[64, 96]])
    rpn = rpn_output(random_maps(1, 64, 96), sizes)
    assert sum(rpn.level_sizes) == 72 + 18
    proposals = make_proposals(rpn, sizes, config=SMALL, training=training)
    assert proposals.boxes.shape == (1, expected, 4)


def test_image_without_proposals() -> None:
    sizes = torch.tensor([[64, 96], [64, 96]])
    rpn = rpn_output(random_maps(2, 64, 96), sizes)
    rpn.deltas[1, :, 2:] = -20.0  # boxes of no size
    proposals = make_proposals(rpn, sizes, config=SMALL, training=False)
    assert proposals.valid[0].any()
    assert not proposals.valid[1].any()
    assert proposals.boxes[1].count_nonzero() == 0


def test_proposals_are_detached_and_survive_nan() -> None:
    sizes = torch.tensor([[64, 96]])
    rpn = rpn_output([level.requires_grad_() for level in random_maps(1, 64, 96)], sizes)
    proposals = make_proposals(rpn, sizes, config=SMALL, training=True)
    assert not proposals.boxes.requires_grad
    assert not proposals.scores.requires_grad

    nothing = torch.full_like(rpn.deltas, torch.nan)
    proposals = make_proposals(replace(rpn, deltas=nothing), sizes, config=SMALL, training=True)
    assert not proposals.valid.any()


def test_logits_beyond_the_sigmoids_resolution_are_still_ranked() -> None:
    sizes = torch.tensor([[96, 128]])
    rpn = rpn_output(random_maps(1, 96, 128), sizes)
    logits = 20 + torch.randn(1, rpn.anchors.shape[0]) * 5  # the sigmoid of 17 is 1
    rpn = replace(rpn, objectness_logits=logits, deltas=torch.zeros_like(rpn.deltas))
    found = make_proposals(rpn, sizes, config=SMALL, training=False)
    best = rpn.anchors[logits[0].argmax()].clamp(min=0).minimum(torch.tensor([128.0, 96, 128, 96]))
    torch.testing.assert_close(found.boxes[0, 0], best)
    assert found.scores.max() <= 1
