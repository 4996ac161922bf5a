import copy
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from detection.config import RoIConfig
from detection.models.box_head import BoxPredictor, C4BoxHead, FPNBoxHead
from detection.models.selection import (
    class_scores,
    decode_predictions,
    select_detections,
    to_detections,
)
from detection.ops.box_coder import decode_boxes
from detection.structures import Detections, ImageBatch, Proposals
from tests.detection.models.detectors import make_images, random_boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
CONFIG = RoIConfig(score_thresh=0.05, nms_thresh=0.5, max_detections=100)
SIZES = [(80, 120), (96, 64), (50, 128)]
ORIGINAL_SIZES = [(160, 240), (301, 200), (25, 64)]


def head_outputs(num_rois: int, num_classes: int) -> tuple[Tensor, Tensor, Proposals]:
    boxes = torch.stack([random_boxes(num_rois, size) for size in SIZES])
    valid = torch.rand(len(SIZES), num_rois) > 0.2
    proposals = Proposals(boxes=boxes, scores=torch.rand(len(SIZES), num_rois), valid=valid)
    class_logits = torch.randn(len(SIZES), num_rois, num_classes + 1) * 2
    return class_logits, torch.randn(len(SIZES), num_rois, num_classes, 4), proposals


def images() -> ImageBatch:
    return make_images(SIZES, padded_to=(96, 128), original_sizes=ORIGINAL_SIZES)


def detections_one_by_one(
    class_logits: Tensor, deltas: Tensor, proposals: Proposals, config: RoIConfig
) -> list[Detections]:
    """The obvious way: image by image, class by class."""
    results = []
    for i, (height, width) in enumerate(SIZES):
        original_height, original_width = ORIGINAL_SIZES[i]
        ratio = torch.tensor([original_width / width, original_height / height]).repeat(2)
        rows: list[tuple[float, list[float], int]] = []
        for label in range(deltas.shape[2]):
            scores = class_logits[i].softmax(dim=1)[:, label]
            boxes = decode_boxes(deltas[i, :, label], proposals.boxes[i], weights=WEIGHTS)
            boxes = torchvision.ops.clip_boxes_to_image(boxes, (height, width))
            sides = boxes[:, 2:] - boxes[:, :2]
            good = proposals.valid[i] & (scores > config.score_thresh)
            if config.drop_empty == "first":
                good &= (sides >= 0.01).all(dim=1)
            boxes, scores = boxes[good], scores[good]
            for keep in torchvision.ops.nms(boxes, scores, config.nms_thresh).tolist():
                rows.append((float(scores[keep]), (boxes[keep] * ratio).tolist(), label))
        rows = sorted(rows, reverse=True)[: config.max_detections]
        rows = [row for row in rows if row[1][0] < row[1][2] and row[1][1] < row[1][3]]
        results.append(
            Detections(
                boxes=torch.tensor([row[1] for row in rows]).view(-1, 4),
                scores=torch.tensor([row[0] for row in rows]),
                labels=torch.tensor([row[2] for row in rows], dtype=torch.int64),
            )
        )
    return results


def detect(
    class_logits: Tensor,
    deltas: Tensor,
    proposals: Proposals,
    images: ImageBatch,
    *,
    config: RoIConfig,
) -> list[Detections]:
    predictions = decode_predictions(
        class_scores(class_logits), deltas, proposals, images.sizes, box_weights=WEIGHTS
    )
    return to_detections(select_detections(predictions, config=config), images)


def check_detections(
    class_logits: Tensor, deltas: Tensor, proposals: Proposals, config: RoIConfig
) -> list[Detections]:
    """Compare the detections with those of the obvious way, and return them."""
    found = detect(class_logits, deltas, proposals, images(), config=config)
    expected = detections_one_by_one(class_logits, deltas, proposals, config)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.scores, reference.scores)
        torch.testing.assert_close(ours.labels, reference.labels)
        torch.testing.assert_close(ours.boxes, reference.boxes, rtol=1e-5, atol=1e-3)
    return found


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="defaults"),
        pytest.param(RoIConfig(max_detections=7), id="few"),
        pytest.param(RoIConfig(score_thresh=0.0, nms_thresh=0.3), id="no_threshold"),
        pytest.param(RoIConfig(score_thresh=0.3), id="high_threshold"),
        pytest.param(RoIConfig(score_thresh=1.0), id="none_passes"),
    ],
)
def test_equals_the_obvious_way(config: RoIConfig) -> None:
    class_logits, deltas, proposals = head_outputs(40, 30)
    check_detections(class_logits, deltas, proposals, config)


@pytest.mark.parametrize("max_detections", [15, 1000])
def test_empty_boxes_can_be_among_the_best(max_detections: int) -> None:
    """As in detectron2: with `drop_empty=last` they leave fewer detections."""
    class_logits, deltas, proposals = head_outputs(40, 8)
    deltas = deltas * 40  # many boxes are outside the image
    counts = {}
    for when in ("first", "last"):
        values = {"drop_empty": when, "max_detections": max_detections}
        config = RoIConfig.model_validate(values)
        found = check_detections(class_logits, deltas, proposals, config)
        counts[when] = [len(detections) for detections in found]
    if max_detections == 15:
        assert counts["first"] == [15, 15, 15]
        assert all(0 < count < 15 for count in counts["last"])


@pytest.mark.parametrize("thresh", [0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5])
def test_every_candidate_above_the_threshold_is_looked_at(thresh: float) -> None:
    # as many classes as possible just above the threshold, at every RoI
    count = int(1 / thresh) - 1
    scores = torch.full((50,), 1e-6)
    scores[:count] = thresh * 1.0001
    scores[-1] = 1 - scores[:-1].sum()
    class_logits = scores.log().expand(1, 6, 50)
    boxes = torch.arange(6.0)[:, None] * 20 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    found = detect(
        class_logits,
        torch.zeros(1, 6, 49, 4),
        Proposals(boxes[None], torch.ones(1, 6), torch.ones(1, 6, dtype=torch.bool)),
        make_images([(128, 128)], padded_to=(128, 128)),
        config=RoIConfig(score_thresh=thresh, nms_thresh=0.5, max_detections=1000),
    )
    assert len(found[0]) == 6 * count


def test_batch_equals_one_by_one_and_padding_changes_nothing() -> None:
    class_logits, deltas, proposals = head_outputs(40, 5)
    together = detect(class_logits, deltas, proposals, images(), config=CONFIG)
    for i, ours in enumerate(together):
        row = slice(i, i + 1)
        alone = detect(
            class_logits[row],
            deltas[row],
            Proposals(proposals.boxes[row], proposals.scores[row], proposals.valid[row]),
            make_images(SIZES[row], padded_to=(128, 160), original_sizes=ORIGINAL_SIZES[row]),
            config=CONFIG,
        )[0]
        torch.testing.assert_close(ours.boxes, alone.boxes, rtol=0, atol=0)
        torch.testing.assert_close(ours.labels, alone.labels)


def test_boxes_lie_in_the_original_image() -> None:
    class_logits, deltas, proposals = head_outputs(40, 5)
    found = detect(class_logits, deltas * 20, proposals, images(), config=CONFIG)
    for detections, (height, width) in zip(found, ORIGINAL_SIZES, strict=True):
        assert len(detections) > 0
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= torch.tensor([width, height, width, height])).all()
        assert detections.boxes[:, 2].max() == width


def test_image_without_proposals_has_no_detections() -> None:
    class_logits, deltas, proposals = head_outputs(10, 5)
    proposals.valid[1] = False
    proposals.boxes[1] = 0
    found = detect(class_logits, deltas, proposals, images(), config=CONFIG)
    assert [len(detections) > 0 for detections in found] == [True, False, True]
    assert found[1].boxes.shape == (0, 4)


def test_c4_head_averages_and_owns_no_parameters() -> None:
    head = C4BoxHead()
    pooled = torch.randn(5, 8, 7, 7)
    torch.testing.assert_close(head(pooled), pooled.flatten(2).mean(dim=2))
    assert list(head.parameters()) == []


def test_hidden_layers_see_channel_row_column_in_any_memory_layout() -> None:
    head = FPNBoxHead(4, resolution=7, config=RoIConfig(hidden_dim=6))
    assert list(head.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    fc1, fc2 = (head.get_parameter(f"fc{n}.weight") for n in (1, 2))
    bias1, bias2 = (head.get_parameter(f"fc{n}.bias") for n in (1, 2))
    assert fc1.shape == (6, 4 * 7 * 7)
    pooled = torch.randn(5, 4, 7, 7)
    expected = F.linear(F.linear(pooled.reshape(5, -1), fc1, bias1).relu(), fc2, bias2).relu()
    torch.testing.assert_close(head(pooled.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_convolutions_before_linear_layers(norm: Literal["none", "batch", "group"]) -> None:
    config = RoIConfig(num_convs=2, conv_dim=8, num_fcs=1, hidden_dim=6, norm=norm)
    head = FPNBoxHead(4, resolution=5, config=config)
    parts = ["conv1", "conv2"] if norm == "none" else ["conv1", "norm1", "conv2", "norm2"]
    assert [name for name, _ in head.convs.named_children()] == parts
    assert ("convs.conv1.bias" in head.state_dict()) == (norm == "none")
    assert [name for name, _ in head.named_children()] == ["convs", "fc1"]
    pooled = torch.randn(3, 4, 5, 5)
    x = pooled
    for name in parts:
        x = head.get_submodule(f"convs.{name}")(x)
        if name.startswith("norm") or norm == "none":
            x = x.relu()
    expected = head.get_submodule("fc1")(x.flatten(1)).relu()
    torch.testing.assert_close(head(pooled), expected)
    # He's initialisation with fan_out = 9 * 8
    std = head.get_parameter("convs.conv2.weight").std().item()
    assert std == pytest.approx((2 / 72) ** 0.5, rel=0.1)


def test_batch_norm_sees_the_valid_rows_alone() -> None:
    config = RoIConfig(num_convs=4, conv_dim=8, num_fcs=1, hidden_dim=6, norm="batch")
    head = FPNBoxHead(4, resolution=3, config=config).double()
    alone = copy.deepcopy(head)
    for each in alone.modules():  # torch's own
        for name, child in each.named_children():
            if name.startswith("norm"):
                plain = torch.nn.BatchNorm2d(8).double()
                plain.load_state_dict(child.state_dict())
                setattr(each, name, plain)
    pooled, valid = torch.randn(6, 4, 3, 3).double(), torch.tensor([1, 1, 0, 1, 0, 1]).bool()
    found, expected = head(pooled, valid)[valid], alone(pooled[valid])
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(y.square().sum(), list(network.parameters()))
        for y, network in ((found, head), (expected, alone))
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(dict(head.named_buffers()), dict(alone.named_buffers()))


def test_first_weights_of_linear_layers() -> None:
    stds = {}
    for init in ("torch", "caffe2_xavier"):
        config = RoIConfig(num_convs=1, conv_dim=32, num_fcs=3, hidden_dim=64, fc_init=init)
        state = FPNBoxHead(4, resolution=5, config=config).state_dict()
        weights = [state[f"fc{number}.weight"] for number in (1, 2, 3)]
        # times the root of the inputs, so that it does not depend on them
        stds[init] = [weight.std().item() * weight.shape[1] ** 0.5 for weight in weights]
        assert any(state[f"fc{n}.bias"].any() for n in (1, 2, 3)) == (init == "torch")
    for plain, xavier in zip(*stds.values(), strict=True):
        assert xavier == pytest.approx(1, rel=0.05)
        assert xavier / plain == pytest.approx(3**0.5, rel=0.05)


def test_predictor_shapes_and_first_weights() -> None:
    predictor = BoxPredictor(1024, num_classes=20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        class_logits, deltas = predictor(torch.randn(3, 1024))
    assert class_logits.shape == (3, 21)
    assert deltas.shape == (3, 20, 4)
    assert class_logits.dtype == deltas.dtype == torch.float32
    assert 0.009 < predictor.class_logits.weight.std().item() < 0.011
    assert 0.0009 < predictor.deltas.weight.std().item() < 0.0011
    assert predictor.class_logits.bias.count_nonzero() == 0
    assert predictor.deltas.bias.count_nonzero() == 0


def test_equal_scores_come_in_the_order_of_the_proposals() -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    corners = torch.stack([columns, rows], dim=2).flatten(0, 1) * 8
    boxes = torch.cat([corners, corners + 6], dim=1)[torch.randperm(48)]
    logits = torch.tensor([50.0, 0.0, 0.0]).expand(1, 48, 3)
    proposals = Proposals(boxes[None], torch.ones(1, 48), torch.ones(1, 48, dtype=torch.bool))
    one = make_images([(64, 64)], padded_to=(64, 64))
    deltas = torch.zeros(1, 48, 2, 4)
    (found,) = detect(logits, deltas, proposals, one, config=CONFIG)
    torch.testing.assert_close(found.boxes, boxes)
