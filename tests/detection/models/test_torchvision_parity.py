"""The same weights as torchvision's Faster R-CNN: the same proposals, detections and losses."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from detection.losses import roi_loss, rpn_loss
from detection.models import FasterRCNN, RPNOutput
from detection.models.proposals import make_proposals
from detection.ops.box_coder import encode_boxes
from detection.ops.matching import match_boxes
from detection.ops.sampling import sample_matches
from detection.structures import ImageBatch, Targets
from detection.weights import from_torchvision_fasterrcnn
from engine.random_keys import random_keys
from tests.detection.models.detectors import (
    detect,
    make_images,
    make_like_torchvisions,
    random_boxes,
)

NUM_CLASSES = 90
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@dataclass
class Pair:
    """Both detectors, and what both see: `image_list` is torchvision's form of `images`.

    `features` are ours, and feed the later parts of both, so that differences do not add up.
    """

    ours: FasterRCNN
    theirs: TorchvisionFasterRCNN
    images: ImageBatch
    targets: Targets
    image_list: ImageList
    features: dict[str, Tensor]

    def their_features(self) -> dict[str, Tensor]:
        return dict(zip(("0", "1", "2", "3", "pool"), self.features.values(), strict=True))

    def their_targets(self) -> list[dict[str, Tensor]]:
        targets = self.targets
        return [
            {"boxes": boxes[valid], "labels": labels[valid] + 1}
            for boxes, labels, valid in zip(
                targets.boxes, targets.labels, targets.valid, strict=True
            )
        ]


def drawn_images() -> tuple[ImageBatch, Targets]:
    # sizes that round up to one multiple of 64: torchvision has no anchors that are not valid
    sizes = [(256, 320), (200, 300)]
    images = make_images(sizes, padded_to=(256, 320))
    targets = Targets(
        boxes=torch.stack([random_boxes(5, size) for size in sizes]),
        labels=torch.randint(NUM_CLASSES, (2, 5)),
        valid=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
        is_crowd=torch.zeros(2, 5, dtype=torch.bool),
    )
    return images, targets


def coco_images(folder: Path) -> tuple[ImageBatch, Targets]:
    annotations = json.loads((folder / "annotations/instances_train2017.json").read_text())
    entries = [
        image for image in annotations["images"] if (image["height"], image["width"]) == (480, 640)
    ][:2]
    images = make_images([(480, 640)] * 2, padded_to=(512, 640))
    boxes, valid = torch.zeros(2, 50, 4), torch.zeros(2, 50, dtype=torch.bool)
    labels = torch.zeros(2, 50, dtype=torch.int64)
    for row, entry in enumerate(entries):
        found = [
            annotation
            for annotation in annotations["annotations"]
            if annotation["image_id"] == entry["id"] and not annotation["iscrowd"]
        ]
        xywh = torch.tensor([annotation["bbox"] for annotation in found])
        boxes[row, : len(found)] = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
        labels[row, : len(found)] = torch.tensor([a["category_id"] - 1 for a in found])
        valid[row, : len(found)] = True
        image = cv2.imread(str(folder / "train2017" / entry["file_name"]))
        assert image is not None
        rgb = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1]))
        images.pixels[row, :, : rgb.shape[0], : rgb.shape[1]] = rgb.permute(2, 0, 1)
    return images, Targets(boxes, labels, valid, is_crowd=torch.zeros_like(valid))


def enliven(model: TorchvisionFasterRCNN, example: Tensor) -> None:
    """Give random weights norm statistics that fit the images, and outputs that are not flat."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, std=0.2)
    model.backbone.body(example)  # in train mode: leaves this batch's statistics
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean *= torch.empty_like(norm.running_mean).uniform_(0.8, 1.2)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.2)
    for layer, factor in (
        (model.rpn.head.cls_logits, 10.0),
        (model.rpn.head.bbox_pred, 3.0),
        (model.roi_heads.box_predictor.cls_score, 12.0),
        (model.roi_heads.box_predictor.bbox_pred, 5.0),
    ):
        layer.weight *= factor
    model.eval()


def normalized(images: ImageBatch) -> ImageList:
    """Return the images as torchvision's detectors see them."""
    batch = torch.zeros(images.pixels.shape)
    sizes = [(int(height), int(width)) for height, width in images.sizes]
    for row, (height, width) in enumerate(sizes):
        image = images.pixels[row, :, :height, :width] / 255
        batch[row, :, :height, :width] = (image - MEAN) / STD
    return ImageList(batch, sizes)


@pytest.fixture(
    scope="module",
    params=["drawn", pytest.param("coco128", marks=(pytest.mark.data, pytest.mark.extended))],
)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    torch.manual_seed(0)
    if request.param == "drawn":
        images, targets = drawn_images()
    else:
        images, targets = coco_images(request.getfixturevalue("data_dir") / "coco128")
    image_list = normalized(images)
    theirs = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1
    )
    with torch.no_grad():
        enliven(theirs, image_list.tensors)
    ours = make_like_torchvisions(NUM_CLASSES)
    ours.load_state_dict(from_torchvision_fasterrcnn(theirs.state_dict()))
    with torch.no_grad():
        features = ours.features(images)
        yield Pair(ours, theirs, images, targets, image_list, features)


def test_features(pair: Pair) -> None:
    expected = pair.theirs.backbone(pair.image_list.tensors)
    torch.testing.assert_close(pair.their_features(), dict(expected), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("training", [True, False], ids=["train", "test"])
def test_proposals(pair: Pair, training: bool) -> None:
    rpn = pair.ours.rpn(pair.features, pair.images)
    assert rpn.anchor_valid.all()
    config = pair.ours.config.rpn
    proposals = make_proposals(rpn, pair.images.sizes, config=config, training=training)
    pair.theirs.rpn.train(training)
    expected, _ = pair.theirs.rpn(pair.image_list, pair.their_features(), pair.their_targets())
    pair.theirs.rpn.eval()
    for boxes, valid, their_boxes in zip(proposals.boxes, proposals.valid, expected, strict=True):
        assert len(their_boxes) == valid.sum() > 500
        distances, nearest = torch.cdist(boxes[valid], their_boxes, p=torch.inf).min(dim=1)
        assert distances.max() < 1e-3
        # their sort is not stable: of equal scores either may come first
        ranks = torch.arange(len(nearest))
        assert nearest.unique().numel() == len(nearest)
        assert (nearest - ranks).abs().max() <= 1


def test_detections(pair: Pair) -> None:
    rpn = pair.ours.rpn(pair.features, pair.images)
    proposals = make_proposals(rpn, pair.images.sizes, config=pair.ours.config.rpn, training=False)
    regions = pair.ours.region_features(pair.features, proposals.boxes)
    class_logits, deltas = pair.ours.box_outputs(regions)
    found = detect(pair.ours, class_logits, deltas, proposals, pair.images)

    their_features = pair.their_features()
    boxes, _ = pair.theirs.rpn(pair.image_list, their_features)
    expected, _ = pair.theirs.roi_heads(their_features, boxes, pair.image_list.image_sizes)
    for detections, reference in zip(found, expected, strict=True):
        assert len(detections) > 20
        torch.testing.assert_close(detections.scores, reference["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(detections.labels, reference["labels"] - 1)
        torch.testing.assert_close(detections.boxes, reference["boxes"], rtol=0, atol=1e-3)


Sampler = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]


def fixed_sampler(chosen: list[tuple[Tensor, Tensor]]) -> Sampler:
    """Return a sampler for torchvision that gives for each image these (idxs, is_fg)."""

    def sample(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        masks = [(torch.zeros_like(row).bool(), torch.zeros_like(row).bool()) for row in labels]
        for (fg, bg), (idxs, is_fg) in zip(masks, chosen, strict=True):
            fg[idxs[is_fg]] = True
            bg[idxs[~is_fg]] = True
        return [fg for fg, _ in masks], [bg for _, bg in masks]

    return sample


def test_rpn_losses(pair: Pair) -> None:
    targets = pair.targets
    rpn: RPNOutput = pair.ours.rpn(pair.features, pair.images)
    matched_idxs, labels = match_boxes(
        targets.boxes,
        targets.valid,
        targets.is_crowd,
        rpn.anchors,
        fg_thresh=0.7,
        bg_thresh=0.3,
        allow_low_quality=True,
        crowd_ioa_thresh=0.5,
    )
    keys = random_keys(pair.images.seeds, labels.shape[1], stream=0)
    idxs, is_fg, valid = sample_matches(labels, keys, num_samples=256, fg_fraction=0.5)
    assert is_fg.any(dim=1).all()
    gt_boxes = torch.take_along_dim(targets.boxes, matched_idxs.gather(1, idxs)[..., None], 1)
    target_deltas = encode_boxes(gt_boxes, rpn.anchors[idxs])
    logits, deltas = pair.ours.rpn_at(pair.features, idxs)
    losses = rpn_loss(logits, deltas, target_deltas, is_fg, valid, beta=1 / 9)

    chosen = [(i[v], f[v]) for i, f, v in zip(idxs, is_fg, valid, strict=True)]
    pair.theirs.rpn.fg_bg_sampler = fixed_sampler(chosen)
    pair.theirs.rpn.train()
    _, expected = pair.theirs.rpn(pair.image_list, pair.their_features(), pair.their_targets())
    pair.theirs.rpn.eval()
    torch.testing.assert_close(losses["rpn_objectness"], expected["loss_objectness"])
    torch.testing.assert_close(losses["rpn_box"], expected["loss_rpn_box_reg"])


def test_roi_losses(pair: Pair) -> None:
    targets = pair.targets
    rpn = pair.ours.rpn(pair.features, pair.images)
    config = pair.ours.config.rpn
    proposals = make_proposals(rpn, pair.images.sizes, config=config, training=True)
    candidates = torch.cat([proposals.boxes, targets.boxes], dim=1)
    exists = torch.cat([proposals.valid, targets.valid], dim=1)
    matched_idxs, labels = match_boxes(
        targets.boxes,
        targets.valid,
        targets.is_crowd,
        candidates,
        fg_thresh=0.5,
        bg_thresh=0.5,
        allow_low_quality=False,
        crowd_ioa_thresh=0.5,
    )
    labels = labels.masked_fill(~exists, -1)
    keys = random_keys(pair.images.seeds, labels.shape[1], stream=1)
    idxs, is_fg, valid = sample_matches(labels, keys, num_samples=512, fg_fraction=0.25)
    boxes = torch.take_along_dim(candidates, idxs[..., None], dim=1)
    gt_idxs = matched_idxs.gather(1, idxs)
    gt_boxes = torch.take_along_dim(targets.boxes, gt_idxs[..., None], dim=1)
    target_deltas = encode_boxes(gt_boxes, boxes, weights=pair.ours.config.roi.box_weights_of(0))
    roi_labels = targets.labels.gather(1, gt_idxs).masked_fill(~is_fg, NUM_CLASSES)
    class_logits, deltas = pair.ours.box_outputs(pair.ours.region_features(pair.features, boxes))
    losses = roi_loss(class_logits, deltas, roi_labels, target_deltas, valid, beta=1 / 9)

    their_proposals, chosen = [], []
    for image in range(2):
        real = proposals.boxes[image][proposals.valid[image]]
        their_proposals.append(real)
        picked = idxs[image][valid[image]]
        # they append the objects to the proposals that are there, we to all rows
        shift = proposals.boxes.shape[1] - len(real)
        picked = torch.where(picked < len(real), picked, picked - shift)
        chosen.append((picked, is_fg[image][valid[image]]))
    pair.theirs.roi_heads.fg_bg_sampler = fixed_sampler(chosen)
    pair.theirs.roi_heads.train()
    _, expected = pair.theirs.roi_heads(
        pair.their_features(),
        their_proposals,
        pair.image_list.image_sizes,
        pair.their_targets(),
    )
    pair.theirs.roi_heads.eval()
    torch.testing.assert_close(losses["roi_class"], expected["loss_classifier"])
    torch.testing.assert_close(losses["roi_box"], expected["loss_box_reg"])
