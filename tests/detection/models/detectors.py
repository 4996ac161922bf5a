"""Small detectors and batches for the tests of the models."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from backbones.config import BackboneKind
from detection.config import (
    BackboneConfig,
    MaskConfig,
    ModelConfig,
    NeckConfig,
    RoIConfig,
    RPNConfig,
)
from detection.models.build import build_faster_rcnn
from detection.models.faster_rcnn import FasterRCNN
from detection.models.selection import (
    class_scores,
    decode_predictions,
    select_detections,
    to_detections,
)
from detection.structures import Detections, ImageBatch, Proposals

RATIOS = (0.5, 1.0, 2.0)
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
PYRAMID_STRIDES = (4, 8, 16, 32, 64)


def rpn_config(
    *, pre_nms_topk: int = 2000, post_nms_topk_test: int = 1000, min_size: float = 1e-3
) -> RPNConfig:
    return RPNConfig(
        pre_nms_topk_train=2000,
        pre_nms_topk_test=pre_nms_topk,
        post_nms_topk_test=post_nms_topk_test,
        min_size=min_size,
    )


def make_detector(
    neck: Literal["c4", "fpn"],
    *,
    kind: BackboneKind = "resnet18",
    num_classes: int = 3,
    hidden_dim: int = 32,
    pyramid_channels: int = 16,
    roi: RoIConfig | None = None,
    rpn: RPNConfig | None = None,
    size_divisor: int = 32,
) -> FasterRCNN:
    """Return a detector with random weights, in eval mode."""
    roi = (roi or RoIConfig()).model_copy(update={"hidden_dim": hidden_dim})
    config = ModelConfig(
        backbone=BackboneConfig(kind=kind, norm="frozen", frozen_stages=0),
        neck=NeckConfig(kind=neck, channels=pyramid_channels),
        rpn=rpn or rpn_config(),
        roi=roi,
        mask=MaskConfig(aligned=roi.aligned),
    )
    return build_faster_rcnn(config, num_classes=num_classes, size_divisor=size_divisor).eval()


def detect(
    model: FasterRCNN,
    class_logits: Tensor,
    deltas: Tensor,
    proposals: Proposals,
    images: ImageBatch,
) -> list[Detections]:
    """Return each image's detections from the head's output on its proposals."""
    roi = model.config.roi
    predictions = decode_predictions(
        class_scores(class_logits),
        deltas,
        proposals,
        images.sizes,
        box_weights=roi.box_weights_of(0),
    )
    return to_detections(select_detections(predictions, config=roi), images)


def make_like_torchvisions(num_classes: int) -> FasterRCNN:
    """Return a ResNet-50 detector on a pyramid with the settings of torchvision's."""
    return make_detector(
        "fpn",
        kind="resnet50",
        num_classes=num_classes,
        hidden_dim=1024,
        pyramid_channels=256,
        roi=RoIConfig(aligned=False),
        rpn=rpn_config(pre_nms_topk=1000),
        size_divisor=64,
    )


def make_images(
    sizes: Sequence[tuple[int, int]],
    *,
    padded_to: tuple[int, int],
    original_sizes: Sequence[tuple[int, int]] | None = None,
) -> ImageBatch:
    """Return smooth random images of `sizes`, padded with zeros."""
    pixels = torch.zeros(len(sizes), 3, *padded_to, dtype=torch.uint8)
    for image, (height, width) in zip(pixels, sizes, strict=True):
        coarse = torch.rand(1, 3, 6, 8) * 255
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        image[:, :height, :width] = smooth[0].byte()
    return ImageBatch(
        pixels=pixels,
        sizes=torch.tensor(sizes),
        original_sizes=torch.tensor(original_sizes or sizes),
        image_ids=torch.arange(len(sizes)),
        seeds=torch.arange(len(sizes)) + 7,
    )


def random_boxes(count: int, size: tuple[int, int]) -> Tensor:
    """Return (count, 4) boxes of at least a pixel inside an image of `size`."""
    height, width = size
    corners = torch.rand(count, 2, 2) * torch.tensor([width, height])
    top_left, bottom_right = corners.amin(dim=1), corners.amax(dim=1)
    limits = torch.tensor([width - 1.0, height - 1.0])
    top_left = torch.minimum(top_left, limits)
    return torch.cat([top_left, torch.maximum(bottom_right, top_left + 1)], dim=1)
