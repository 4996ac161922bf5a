"""Localizer: its per-class head against plain convolutions, views, merging of boxes."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from detection.localization.build import build_localizer
from detection.localization.config import EvaluationConfig, LocalizerConfig
from detection.localization.localizer import Localizer, LocalizerHead
from detection.localization.views import localize, merge_candidates
from detection.structures import ImageBatch
from engine.errors import UserError
from tests.reference import localization as reference


def test_head_equals_the_requested_channels_of_two_convolutions() -> None:
    head = LocalizerHead(6, num_classes=5, num_anchors=3)
    features = torch.randn(2, 6, 4, 3)
    classes = torch.tensor([[4, 0], [2, 2]])
    logits, deltas = head(features, classes)
    hidden = F.relu(head.conv(features))
    all_logits = F.conv2d(hidden, head.objectness.weight[..., None, None], head.objectness.bias)
    all_deltas = F.conv2d(hidden, head.deltas.weight[..., None, None], head.deltas.bias)
    for image in range(2):
        for column, label in enumerate(classes[image].tolist()):
            # channels: class, anchor, coordinate; anchors in the order row, column, anchor
            expected = all_logits[image].view(5, 3, 4, 3)[label].permute(1, 2, 0).flatten()
            torch.testing.assert_close(logits[image, :, column], expected)
            of_class = all_deltas[image].view(5, 3, 4, 4, 3)[label]
            expected = of_class.permute(2, 3, 0, 1).reshape(-1, 4)
            torch.testing.assert_close(deltas[image, :, column], expected)


def localizer(**changes: Any) -> Localizer:
    backbone = {"kind": "resnet18", "norm": "group", "frozen_stages": 0}
    values = {"backbone": backbone, "level": "c4", "anchor_sizes": [16, 32], **changes}
    return build_localizer(LocalizerConfig.model_validate(values), num_classes=3).eval()


@pytest.mark.parametrize(("level", "stride"), [("c3", 8), ("c4", 16), ("c5", 32)])
def test_output_shapes_match_the_anchors_of_the_level(level: str, stride: int) -> None:
    model = localizer(level=level)
    pixels = torch.randint(256, (1, 3, 64, 80), dtype=torch.uint8)
    output = model(pixels, torch.tensor([[1, 2]]))
    cells = -(-64 // stride) * -(-80 // stride)
    assert output.anchors.shape == (cells * 6, 4)
    assert output.logits.shape == (1, cells * 6, 2)
    assert output.deltas.shape == (1, cells * 6, 2, 4)
    assert output.anchors[:, :2].min() < 0 < output.anchors[:, 2:].max()


def test_class_agnostic_head_predicts_the_same_for_every_class() -> None:
    model = localizer(per_class=False)
    pixels = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    logits = model(pixels, torch.tensor([[0, 2]])).logits
    torch.testing.assert_close(logits[..., 0], logits[..., 1])


def views(**changes: Any) -> EvaluationConfig:
    values: dict[str, Any] = {
        "view": "center",
        "crop": 48,
        "scales": (48, 64),
        "mirror": False,
        "merge": "best",
        "vote_iou_thresh": 0.5,
        "candidates": 20,
    }
    return EvaluationConfig(**{**values, **changes})


def images(*, height: int = 64, width: int = 96, scale: int = 3) -> ImageBatch:
    sizes = torch.tensor([[height, width]]).repeat(2, 1)
    return ImageBatch(
        pixels=torch.randint(256, (2, 3, height, width), dtype=torch.uint8),
        sizes=sizes,
        original_sizes=sizes * scale,
        image_ids=torch.arange(2),
        seeds=torch.arange(2),
    )


CLASSES = torch.tensor([[0, 1], [2, 1]])


def localizer_that_predicts(box: tuple[float, float, float, float]) -> Localizer:
    """A network with one anchor on a view of 16 pixels, which predicts `box` for any view."""
    model = localizer(anchor_sizes=[16], anchor_ratios=[1])
    x1, y1, x2, y2 = box
    # the anchor reaches from -8 to 8
    delta = [(x1 + x2) / 32, (y1 + y2) / 32, math.log((x2 - x1) / 16), math.log((y2 - y1) / 16)]
    with torch.no_grad():
        for layer in (model.head.objectness, model.head.deltas):
            layer.weight.zero_()
        model.head.deltas.bias.copy_(torch.tensor(delta * 3))
    return model


TO_ORIGINAL = {
    # in 96 x 64 the center crop of 16 begins at x 40, y 24; the original is three times as large
    "center": ({"crop": 16}, 96, [(4 + 40) * 3, (6 + 24) * 3, (14 + 40) * 3, (12 + 24) * 3]),
    # at a shorter side of 16 a pixel spans four of the resized image, twelve of the original
    "dense": ({"view": "dense", "scales": (16,)}, 64, [4 * 12, 6 * 12, 14 * 12, 12 * 12]),
}


@pytest.mark.parametrize(("changes", "width", "expected"), TO_ORIGINAL.values(), ids=TO_ORIGINAL)
def test_boxes_are_in_original_pixels(
    changes: dict[str, Any], width: int, expected: list[int]
) -> None:
    model = localizer_that_predicts((4, 6, 14, 12))
    boxes, scores = localize(model, images(width=width), CLASSES, config=views(**changes))
    torch.testing.assert_close(boxes, torch.tensor(expected).float().expand(2, 2, 4))
    torch.testing.assert_close(scores, torch.full((2, 2), 0.5))


@pytest.mark.parametrize(("thresh", "expected"), [(0.5, [12, 24, 52, 48]), (0.7, [16, 24, 56, 48])])
def test_mirrored_boxes_are_turned_back(thresh: float, expected: list[float]) -> None:
    """Mirrored, x from 4 to 14 of 16 is x from 2 to 12: the overlap of both is two thirds."""
    model = localizer_that_predicts((4, 6, 14, 12))
    how = views(view="dense", scales=(16,), mirror=True, merge="vote", vote_iou_thresh=thresh)
    boxes, _ = localize(model, images(width=64, scale=1), CLASSES, config=how)
    torch.testing.assert_close(boxes[0, 0], torch.tensor(expected).float())


def test_boxes_across_the_border_are_clipped_after_merging() -> None:
    """In 16 pixels, x from -4 to 12 and, mirrored, from 4 to 20: on average the whole width."""
    model = localizer_that_predicts((-4, 4, 12, 12))
    how = views(view="dense", scales=(16,), mirror=True, merge="vote", vote_iou_thresh=0.3)
    boxes, _ = localize(model, images(width=64, scale=1), CLASSES, config=how)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.0, 16, 64, 48]))


@pytest.mark.parametrize("view", ["center", "dense"])
def test_boxes_of_an_image_do_not_depend_on_the_batch(view: str) -> None:
    model, batch = localizer(), images()
    how = views(view=view, merge="vote", mirror=True)
    boxes, scores = localize(model, batch, CLASSES, config=how)
    assert boxes.isfinite().all()
    alone = ImageBatch(*(getattr(batch, name)[1:] for name in vars(batch)))
    boxes_alone, scores_alone = localize(model, alone, CLASSES[1:], config=how)
    torch.testing.assert_close(boxes[1:], boxes_alone, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scores[1:], scores_alone)


@pytest.mark.parametrize("thresh", [0.3, 0.7])
def test_voting_equals_the_reference(thresh: float) -> None:
    near, far = torch.rand(4, 12, 2) * 0.3, 0.6 + torch.rand(4, 12, 2) * 0.4
    boxes, scores = torch.cat([near, far], dim=2), torch.rand(4, 12)
    how = views(merge="vote", vote_iou_thresh=thresh)
    found, best = merge_candidates(boxes, scores, config=how)
    for row in range(4):
        expected = reference.vote(boxes[row].tolist(), scores[row].tolist(), thresh)
        torch.testing.assert_close(found[row], torch.tensor(expected), rtol=1e-4, atol=1e-5)
        assert best[row] == scores[row].max()


def test_voting_with_empty_boxes_and_zero_scores_is_finite() -> None:
    boxes, _ = merge_candidates(torch.zeros(1, 3, 4), torch.zeros(1, 3), config=views(merge="vote"))
    torch.testing.assert_close(boxes, torch.zeros(1, 4))


def test_an_image_smaller_than_the_crop_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"evaluation\.crop: expected at most the images' sides"):
        localize(localizer(), images(), CLASSES, config=views(crop=65))
