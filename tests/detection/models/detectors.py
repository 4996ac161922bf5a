"""Small detectors and batches for the tests of the models."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from backbones.fpn import FPN
from backbones.resnet import build_resnet
from detection.models import (
    AnchorGenerator,
    BoxPredictor,
    BoxStage,
    C4BoxHead,
    DetectorSettings,
    DetectSettings,
    FasterRCNN,
    FPNBoxHead,
    PoolSettings,
    ProposalSettings,
    RPNHead,
)
from detection.structures import ImageBatch

RATIOS = (0.5, 1.0, 2.0)
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
PYRAMID_STRIDES = (4, 8, 16, 32, 64)


def proposal_settings(
    *, pre_nms_topk: int = 2000, post_nms_topk_test: int = 1000, min_size: float = 1e-3
) -> ProposalSettings:
    return ProposalSettings(
        pre_nms_topk_train=2000,
        pre_nms_topk_test=pre_nms_topk,
        post_nms_topk_train=2000,
        post_nms_topk_test=post_nms_topk_test,
        nms_thresh=0.7,
        min_size=min_size,
    )


def make_detector(
    neck: Literal["c4", "fpn"],
    *,
    kind: str = "resnet18",
    num_classes: int = 3,
    hidden_dim: int = 32,
    pyramid_channels: int = 16,
    pooling: PoolSettings | None = None,
    proposals: ProposalSettings | None = None,
    size_divisor: int = 32,
) -> FasterRCNN:
    """Return a detector with random weights, in eval mode."""
    backbone = build_resnet(
        kind, num_classes=None, norm="frozen", norm_eps=1e-5, stride_in_1x1=False
    )
    specs = backbone.feature_specs
    resolution = 14 if neck == "c4" else 7
    settings = DetectorSettings(
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        size_divisor=size_divisor,
        proposals=proposals or proposal_settings(),
        pooling=pooling or PoolSettings("roi_align", resolution, sampling_ratio=2, aligned=True),
        box_weights=((10.0, 10.0, 5.0, 5.0),),
        detection=DetectSettings(score_thresh=0.05, nms_thresh=0.5, max_detections=100),
        mask_aligned=pooling.aligned if pooling else True,
    )
    if neck == "c4":
        return FasterRCNN(
            backbone,
            neck=None,
            anchor_generator=AnchorGenerator([SIZES], ratios=RATIOS, strides=[16]),
            rpn_head=RPNHead(specs["c4"].channels, len(SIZES) * len(RATIOS)),
            box_stages=[
                BoxStage(C4BoxHead(), BoxPredictor(specs["c5"].channels, num_classes=num_classes))
            ],
            settings=settings,
        ).eval()
    return FasterRCNN(
        backbone,
        neck=FPN(specs, channels=pyramid_channels),
        anchor_generator=AnchorGenerator(
            [[size] for size in SIZES], ratios=RATIOS, strides=PYRAMID_STRIDES
        ),
        rpn_head=RPNHead(pyramid_channels, len(RATIOS)),
        box_stages=[
            BoxStage(
                FPNBoxHead(pyramid_channels, resolution=7, hidden_dim=hidden_dim),
                BoxPredictor(hidden_dim, num_classes=num_classes),
            )
        ],
        settings=settings,
    ).eval()


def make_like_torchvisions(num_classes: int) -> FasterRCNN:
    """Return a ResNet-50 detector on a pyramid with the settings of torchvision's."""
    return make_detector(
        "fpn",
        kind="resnet50",
        num_classes=num_classes,
        hidden_dim=1024,
        pyramid_channels=256,
        pooling=PoolSettings("roi_align", 7, sampling_ratio=2, aligned=False),
        proposals=proposal_settings(pre_nms_topk=1000),
        size_divisor=64,
    )


def make_images(
    sizes: Sequence[tuple[int, int]],
    *,
    padded_to: tuple[int, int],
    original_sizes: Sequence[tuple[int, int]] | None = None,
) -> ImageBatch:
    """Return smooth random pictures of `sizes`, padded with zeros."""
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
    """Return (count, 4) boxes of at least a pixel inside a picture of `size`."""
    height, width = size
    corners = torch.rand(count, 2, 2) * torch.tensor([width, height])
    top_left, bottom_right = corners.amin(dim=1), corners.amax(dim=1)
    limits = torch.tensor([width - 1.0, height - 1.0])
    top_left = torch.minimum(top_left, limits)
    return torch.cat([top_left, torch.maximum(bottom_right, top_left + 1)], dim=1)
