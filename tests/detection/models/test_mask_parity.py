"""The same weights as torchvision's Mask R-CNN: the same mask losses and the same pasted masks."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import maskrcnn_loss, paste_masks_in_image

from detection.config import DataConfig, SplitConfig
from detection.data.dataset import CocoDetection
from detection.losses import mask_loss
from detection.models import FasterRCNN, MaskHead
from detection.models.mask_head import masks_of_labels
from detection.models.proposals import make_proposals
from detection.ops.masks import crop_masks, unpack_bits
from detection.structures import DetectionBatch
from detection.weights import from_torchvision_fasterrcnn, to_torchvision_fasterrcnn
from tests.detection.models.detectors import make_like_torchvisions
from tests.detection.models.test_torchvision_parity import NUM_CLASSES, enliven, normalized

pytestmark = pytest.mark.data


class Pair(NamedTuple):
    """Both networks, what both see, and features that feed the later parts of both."""

    ours: FasterRCNN
    theirs: MaskRCNN
    batch: DetectionBatch
    image_list: ImageList
    features: dict[str, Tensor]


@pytest.fixture(scope="module")
def pair(data_dir: Path) -> Iterator[Pair]:
    torch.manual_seed(0)
    coco = data_dir / "coco128"
    split = SplitConfig(
        images=str(coco / "train2017"),
        annotations=str(coco / "annotations/instances_train2017.json"),
    )
    config = DataConfig(val=split, eval_short_side=192, eval_max_side=320, size_divisor=64)
    data = CocoDetection(split, config=config, training=False, with_masks=True)
    groups = torch.from_numpy(data.groups)
    rows = (groups == groups.mode().values).nonzero()[:2, 0].tolist()
    batch = data.collate([data.load(row, 0) for row in rows])
    image_list = normalized(batch.images)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)
    with torch.no_grad():
        enliven(theirs, image_list.tensors)
        theirs.roi_heads.mask_predictor.mask_fcn_logits.weight *= 5
    ours = make_like_torchvisions(NUM_CLASSES)
    ours.mask_head = MaskHead(256, num_convs=4, hidden_dim=256, num_classes=NUM_CLASSES)
    ours.load_state_dict(from_torchvision_fasterrcnn(theirs.state_dict()))
    with torch.no_grad():
        yield Pair(ours, theirs, batch, image_list, ours.features(batch.images))


def their_features(pair: Pair) -> dict[str, Tensor]:
    return dict(zip(("0", "1", "2", "3", "pool"), pair.features.values(), strict=True))


def test_weights_go_back(pair: Pair) -> None:
    back = to_torchvision_fasterrcnn(pair.ours.state_dict())
    with torch.device("meta"):
        model = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1
        )
    model.load_state_dict(back, strict=True, assign=True)
    logits = "roi_heads.mask_predictor.mask_fcn_logits.weight"
    torch.testing.assert_close(back[logits][1:], pair.theirs.state_dict()[logits][1:])


def test_mask_losses_on_the_same_samples(pair: Pair) -> None:
    images, targets = pair.batch.images, pair.batch.targets
    assert targets.masks is not None
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(*targets.boxes.shape, generator=generator) * 8
    limits = images.sizes.flip(1).repeat(1, 2)[:, None]
    moved = torch.minimum((targets.boxes + noise).clamp(min=0), limits)
    low, high = torch.minimum(moved[..., :2], moved[..., 2:]), moved[..., 2:]
    boxes = torch.cat([low, torch.maximum(high, low + 2)], dim=2)
    gt_idxs = torch.arange(boxes.shape[1]).expand(len(boxes), -1)
    valid = targets.valid & ~targets.is_crowd
    width = images.pixels.shape[3]

    logits = pair.ours.mask_logits(pair.features, boxes)
    wanted = crop_masks(targets.masks, gt_idxs, boxes, width=width, resolution=28, aligned=False)
    loss = mask_loss(masks_of_labels(logits, targets.labels), wanted, valid)["mask"]

    heads = pair.theirs.roi_heads
    rois = [row[keep] for row, keep in zip(boxes, valid, strict=True)]
    pooled = heads.mask_roi_pool(their_features(pair), rois, pair.image_list.image_sizes)
    their_logits = heads.mask_predictor(heads.mask_head(pooled))
    torch.testing.assert_close(logits[valid], their_logits[:, 1:], rtol=1e-3, atol=1e-3)
    gt_masks = [
        unpack_bits(row[keep], width=width) for row, keep in zip(targets.masks, valid, strict=True)
    ]
    expected = maskrcnn_loss(
        their_logits,
        rois,
        gt_masks,
        [row[keep] + 1 for row, keep in zip(targets.labels, valid, strict=True)],
        [torch.arange(len(row)) for row in rois],
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_pasted_masks(pair: Pair) -> None:
    rpn = pair.ours.rpn(pair.features, pair.batch.images)
    proposals = make_proposals(
        rpn, pair.batch.images.sizes, config=pair.ours.config.rpn, training=False
    )
    found = pair.ours.predict(pair.batch.images)
    rois = [row[keep] for row, keep in zip(proposals.boxes, proposals.valid, strict=True)]
    results, _ = pair.theirs.roi_heads(their_features(pair), rois, pair.image_list.image_sizes)
    compared = 0
    for row, (ours, theirs) in enumerate(zip(found, results, strict=True)):
        size = pair.batch.images.sizes[row]
        original = pair.batch.images.original_sizes[row]
        scale = (original / size).flip(0).repeat(2)
        torch.testing.assert_close(ours.boxes, theirs["boxes"] * scale, rtol=1e-4, atol=1e-2)
        assert ours.masks is not None
        height, width = original.tolist()
        pasted = paste_masks_in_image(theirs["masks"], ours.boxes, (height, width))[:, 0] > 0.5
        for mask, expected in zip(ours.masks, pasted.numpy(), strict=True):
            assert (mask != expected).sum() <= 0.001 * expected.size
            compared += int(expected.any())
    assert compared > 20
