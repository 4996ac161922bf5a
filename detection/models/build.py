"""Build Faster or Mask R-CNN, with random weights, from its config."""

from backbones.fpn import FPN
from backbones.resnet import ResNet, build_resnet
from detection.config import BackboneConfig, DetectionConfig, ModelConfig
from detection.models.anchors import AnchorGenerator
from detection.models.box_head import (
    BoxPredictor,
    BoxStage,
    C4BoxHead,
    FPNBoxHead,
)
from detection.models.faster_rcnn import FasterRCNN
from detection.models.mask_head import MaskHead
from detection.models.rpn import RPNHead


def build_backbone(config: BackboneConfig) -> ResNet:
    """Build a residual network with random weights and without `fc`; its frozen stages are."""
    backbone = build_resnet(
        config.kind,
        norm=config.norm,
        norm_eps=config.norm_eps,
        stride_in_1x1=config.stride_in_1x1,
    )
    backbone.freeze_stages(config.frozen_stages)
    return backbone


def build_detector(config: DetectionConfig, num_classes: int) -> FasterRCNN:
    """Build the network of a run's config with random weights; see `build_faster_rcnn`."""
    return build_faster_rcnn(
        config.model,
        num_classes=num_classes,
        size_divisor=config.data.size_divisor,
        with_masks=config.task == "segmentation",
    )


def build_faster_rcnn(
    config: ModelConfig, *, num_classes: int, size_divisor: int, with_masks: bool = False
) -> FasterRCNN:
    """Build a detector with random weights; its frozen stages are frozen.

    Args:
        config: the network's part of a run's config.
        num_classes: K, background not counted.
        size_divisor: multiple to which images are padded.
        with_masks: build Mask R-CNN.
    """
    backbone = build_backbone(config.backbone)
    specs, rpn, roi, mask = backbone.feature_specs, config.rpn, config.roi, config.mask
    neck: FPN | None = None
    if config.neck.kind == "fpn":
        neck = FPN(specs, channels=config.neck.channels, norm=config.neck.norm)
        head_dim, rpn_dim, mask_dim = roi.hidden_dim, config.neck.channels, config.neck.channels
        num_convs = mask.num_convs
        sizes = [[size] for size in rpn.anchor_sizes]
        strides = [spec.stride for spec in neck.feature_specs.values()]
    else:
        head_dim, rpn_dim, mask_dim = (
            specs["c5"].channels,
            specs["c4"].channels,
            specs["c5"].channels,
        )
        num_convs = 0
        sizes, strides = [list(rpn.anchor_sizes)], [specs["c4"].stride]
    anchors = AnchorGenerator(sizes, ratios=rpn.anchor_ratios, strides=strides)
    box_heads: list[C4BoxHead | FPNBoxHead] = [
        C4BoxHead()
        if neck is None
        else FPNBoxHead(rpn_dim, resolution=roi.resolution_with("fpn"), hidden_dim=roi.hidden_dim)
        for _ in range(roi.stages)
    ]
    rpn_head = RPNHead(rpn_dim, anchors.num_anchors)
    box_stages = [
        BoxStage(head, BoxPredictor(head_dim, num_classes=num_classes)) for head in box_heads
    ]

    mask_head = None
    if with_masks:
        mask_head = MaskHead(
            mask_dim, num_convs=num_convs, hidden_dim=mask.hidden_dim, num_classes=num_classes
        )
    return FasterRCNN(
        backbone,
        neck=neck,
        anchor_generator=anchors,
        rpn_head=rpn_head,
        box_stages=box_stages,
        mask_head=mask_head,
        config=config,
        size_divisor=size_divisor,
    )
