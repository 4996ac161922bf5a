"""Build Faster R-CNN or Mask R-CNN from its config, with random weights."""

from backbones.build import build_network
from backbones.features import Backbone
from backbones.fpn import FPN
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


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build a backbone without `fc`, with random weights; freeze its first stages."""
    backbone = build_network(
        config.kind,
        norm=config.norm,
        norm_eps=config.norm_eps,
        stride_in_1x1=config.stride_in_1x1,
        width_multiplier=config.width_multiplier,
    )
    backbone.freeze_stages(config.frozen_stages)
    return backbone


def build_detector(config: DetectionConfig, num_classes: int) -> FasterRCNN:
    """Build the detector of a run's config; see `build_faster_rcnn`."""
    return build_faster_rcnn(
        config.model,
        num_classes=num_classes,
        size_divisor=config.data.size_divisor,
        with_masks=config.task == "segmentation",
    )


def build_faster_rcnn(
    config: ModelConfig, *, num_classes: int, size_divisor: int, with_masks: bool = False
) -> FasterRCNN:
    """Build a detector with random weights; freeze the first stages of its backbone.

    Args:
        config: the `model` section of a run's config.
        num_classes: K, background not counted.
        size_divisor: multiple to which images are padded.
        with_masks: build Mask R-CNN instead of Faster R-CNN.
    """
    backbone = build_backbone(config.backbone)
    specs, rpn, roi, mask = backbone.feature_specs, config.rpn, config.roi, config.mask
    neck: FPN | None = None
    if config.neck.kind == "fpn":
        neck = FPN(specs, channels=config.neck.channels, norm=config.neck.norm)
        head_dim, rpn_dim, mask_dim = roi.hidden_dim, config.neck.channels, config.neck.channels
        num_convs = mask.num_convs
        sizes = [[size] for size in rpn.anchor_sizes]  # one size for each level
        strides = [spec.stride for spec in neck.feature_specs.values()]
    else:
        # The RPN works on c4. The box and mask heads get RoIs after conv5, so c5's channels.
        head_dim, rpn_dim, mask_dim = (
            specs["c5"].channels,
            specs["c4"].channels,
            specs["c5"].channels,
        )
        num_convs = 0  # conv5 takes the place of the mask head's convolutions
        sizes, strides = [list(rpn.anchor_sizes)], [specs["c4"].stride]  # all sizes on one level
    anchors = AnchorGenerator(
        sizes, ratios=rpn.anchor_ratios, strides=strides, rounded=rpn.round_anchors
    )
    box_heads: list[C4BoxHead | FPNBoxHead] = [
        C4BoxHead()
        if neck is None
        else FPNBoxHead(
            rpn_dim,
            resolution=roi.resolution_with("fpn", config.backbone.kind),
            config=roi,
        )
        for _ in range(roi.stages)
    ]
    head_dim *= 2 if roi.global_context else 1  # the feature of the RoI and that of the image
    rpn_head = RPNHead(rpn_dim, anchors.num_anchors, num_convs=rpn.num_convs)
    box_stages = [
        BoxStage(
            head,
            BoxPredictor(
                head_dim, num_classes=num_classes, class_agnostic_boxes=roi.class_agnostic_boxes
            ),
        )
        for head in box_heads
    ]

    mask_head = None
    if with_masks:
        mask_head = MaskHead(
            mask_dim,
            num_convs=num_convs,
            hidden_dim=mask.hidden_dim,
            num_classes=num_classes,
            norm=mask.norm,
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
