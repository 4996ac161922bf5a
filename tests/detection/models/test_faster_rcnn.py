from typing import Literal

import pytest
import torch
from torch import Tensor

from detection.config import RoIConfig
from detection.models import FasterRCNN, RPNOutput
from detection.models.proposals import make_proposals
from detection.ops.roi_pool import pool_rois
from detection.structures import ImageBatch, Proposals
from tests.detection.models.detectors import detect, make_detector, make_images, rpn_config

Neck = Literal["c4", "fpn"]
NECKS: list[Neck] = ["c4", "fpn"]
FEW = rpn_config(pre_nms_topk=100, post_nms_topk_test=30)
SIZES = [(96, 128), (64, 100)]


def images() -> ImageBatch:
    return make_images(SIZES, padded_to=(96, 128), original_sizes=[(192, 256), (128, 200)])


def outputs(model: FasterRCNN, batch: ImageBatch) -> tuple[Tensor, Tensor, RPNOutput, Proposals]:
    features = model.features(batch)
    rpn = model.rpn(features, batch)
    proposals = make_proposals(rpn, batch.sizes, config=model.config.rpn, training=False)
    class_logits, deltas = model.box_outputs(model.region_features(features, proposals.boxes))
    return class_logits, deltas, rpn, proposals


@pytest.mark.parametrize("neck", NECKS)
def test_state_names(neck: Neck) -> None:
    names = list(make_detector(neck).state_dict())
    heads = [name for name in names if not name.startswith(("backbone.", "fpn."))]
    layers = ["rpn_head.conv", "rpn_head.objectness", "rpn_head.deltas"]
    layers += ["box_head.fc1", "box_head.fc2"] if neck == "fpn" else []
    layers += ["box_predictor.class_logits", "box_predictor.deltas"]
    assert heads == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert sum("layer4.0.conv1.weight" in name for name in names) == 1
    assert any(name.startswith("fpn.") for name in names) == (neck == "fpn")


@pytest.mark.parametrize("neck", NECKS)
def test_shapes(neck: Neck) -> None:
    model = make_detector(neck, rpn=FEW)
    with torch.no_grad():
        class_logits, deltas, rpn, _ = outputs(model, images())
    assert class_logits.shape == (2, 30, 4)
    assert deltas.shape == (2, 30, 3, 4)
    cells = 6 * 8 if neck == "c4" else 24 * 32 + 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2
    assert rpn.objectness_logits.shape == (2, cells * model.anchor_generator.num_anchors)


def test_c4_runs_conv5_on_regions_only() -> None:
    model = make_detector("c4")
    with torch.no_grad():
        features = model.features(images())
        assert "c5" not in features
        boxes = torch.tensor([[[0.0, 0.0, 64.0, 48.0]], [[16.0, 16.0, 80.0, 60.0]]])
        class_logits, _ = model.box_outputs(model.region_features(features, boxes))
        # what is 14x14 on c4 is 7x7 after conv5
        assert model.backbone.stage(torch.zeros(1, 256, 14, 14), 5).shape == (1, 512, 7, 7)
        for name, parameter in model.backbone.named_parameters():
            if name.startswith("layer4."):
                parameter.zero_()
        changed, _ = model.box_outputs(model.region_features(features, boxes))
    assert not torch.equal(class_logits, changed)


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
def test_c4_regions_are_conv5_of_pooled_regions(kind: Literal["roi_align", "roi_pool"]) -> None:
    roi = RoIConfig(pool=kind)
    model = make_detector("c4", kind="resnet50", roi=roi).double()
    boxes = torch.tensor([[[-9.0, -5, 64, 48], [3, 3, 7, 200]], [[16, 16, 80, 60], [0, 0, 0, 0]]])
    c4 = torch.randn(2, 1024, 6, 8, dtype=torch.float64)
    pooled = pool_rois([c4], [16], boxes, kind=kind, resolution=14)
    with torch.no_grad():
        expected = model.backbone.stage(pooled, 5).unflatten(0, (2, 2))
        torch.testing.assert_close(model.region_features({"c4": c4}, boxes), expected)


@pytest.mark.extended
@pytest.mark.parametrize("neck", NECKS)
def test_every_trainable_part_gets_a_gradient(neck: Neck) -> None:
    model = make_detector(neck, rpn=FEW)
    class_logits, deltas, rpn, proposals = outputs(model, images())
    assert not proposals.boxes.requires_grad
    parts = (class_logits, deltas, rpn.objectness_logits, rpn.deltas)
    torch.stack([part.square().mean() for part in parts]).sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert without == []


def test_padding_is_zero_after_normalisation_and_the_layout_stays() -> None:
    model = make_detector("c4")
    batch = images()
    batch.pixels[1, :, 64:] = 99
    pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
    batch = ImageBatch(
        pixels, batch.sizes, batch.original_sizes, batch.image_ids, seeds=batch.seeds
    )
    normalized = model.network_input(batch)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    torch.testing.assert_close(normalized[0], (pixels[0] - mean) / std)
    torch.testing.assert_close(normalized[1, :, :64, :100], (pixels[1, :, :64, :100] - mean) / std)
    assert normalized[1, :, 64:].count_nonzero() == 0
    assert normalized[1, :, :, 100:].count_nonzero() == 0


@pytest.mark.extended
@pytest.mark.parametrize("neck", NECKS)
def test_memory_layout_changes_no_output(neck: Neck) -> None:
    model = make_detector(neck, rpn=FEW)
    batch = images()
    with torch.no_grad():
        expected = outputs(model, batch)
        model = model.to(memory_format=torch.channels_last)
        pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
        moved = ImageBatch(pixels, batch.sizes, batch.original_sizes, batch.image_ids, batch.seeds)
        result = outputs(model, moved)
    torch.testing.assert_close(
        result[2].objectness_logits, expected[2].objectness_logits, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(result[0], expected[0], rtol=1e-3, atol=1e-4)


@pytest.mark.extended
@pytest.mark.parametrize("neck", [pytest.param("c4", marks=pytest.mark.slow), "fpn"])
def test_boxes_stay_float32_under_autocast(neck: Neck) -> None:
    model = make_detector(neck, rpn=FEW)
    batch = images()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.features(batch)
        assert all(level.dtype == torch.bfloat16 for level in features.values())
        rpn = model.rpn(features, batch)
        proposals = make_proposals(rpn, batch.sizes, config=model.config.rpn, training=False)
        class_logits, deltas = model.box_outputs(model.region_features(features, proposals.boxes))
        found = detect(model, class_logits, deltas, proposals, batch)
    for tensor in (rpn.objectness_logits, rpn.deltas, rpn.anchors, class_logits, deltas):
        assert tensor.dtype == torch.float32
    # bfloat16 has 8 bits, so boxes that went through it would all lie on a coarse grid
    fractions = proposals.boxes[proposals.valid].frac()
    assert (fractions.bfloat16().float() != fractions).any()
    assert len(found) == 2


@pytest.mark.extended
@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
def test_predict_batch_equals_one_by_one(
    neck: Neck, kind: Literal["roi_align", "roi_pool"]
) -> None:
    roi = RoIConfig(pool=kind)
    model = make_detector(neck, rpn=FEW, roi=roi)
    with torch.no_grad():
        model.box_predictor.deltas.weight.mul_(30)
    sizes = [(96, 128), (96, 128)]
    batch = make_images(sizes, padded_to=(96, 128), original_sizes=[(192, 256), (480, 640)])
    together = model.predict(batch)
    for i in range(2):
        row = slice(i, i + 1)
        alone = ImageBatch(
            batch.pixels[row],
            batch.sizes[row],
            batch.original_sizes[row],
            batch.image_ids[row],
            batch.seeds[row],
        )
        found = model.predict(alone)[0]
        assert len(found) > 0
        torch.testing.assert_close(together[i].scores, found.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[i].boxes, found.boxes, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("neck", NECKS)
def test_network_is_one_graph(neck: Neck) -> None:
    model = make_detector(neck, rpn=FEW)
    batch = images()

    def step(pixels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        part = ImageBatch(pixels, sizes, batch.original_sizes, batch.image_ids, batch.seeds)
        features = model.features(part)
        rpn = model.rpn(features, part)
        proposals = make_proposals(rpn, sizes, config=model.config.rpn, training=True)
        return model.box_outputs(model.region_features(features, proposals.boxes[:, :8]))

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = step(batch.pixels, batch.sizes)
        torch.testing.assert_close(compiled(batch.pixels, batch.sizes), expected)
