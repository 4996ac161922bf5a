"""Config schema of a detector's network. Defaults are the field's usual values.

Boxes and lengths are in pixels of the resized image unless stated otherwise.
"""

from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from backbones.config import BackboneKind, NetworkConfig
from engine.schema import Config, Fraction, PathText, PositiveFloats


class BackboneConfig(NetworkConfig):
    """The backbone."""

    kind: BackboneKind = "resnet101"
    """Architecture and depth. vgg16 (only with neck c4): conv5_3 is shared, fc6 and fc7 run on
    every RoI."""
    norm: Literal["batch", "frozen", "fixed_statistics", "group"] = "frozen"
    """batch: batch norm, over all processes with loop.sync_batch_norm; frozen: batch norm with
    fixed statistics and weights (the paper's choice for detection); fixed_statistics: its weights
    train; group: group norm. No effect on VGG-16, which has none."""
    frozen_stages: int = Field(default=2, ge=0, le=5)
    """Number of stages that are not trained: 0 none, 1 conv1, 2 conv1 and conv2, ... 5 all (with
    fc6 and fc7 of VGG-16)."""


class NeckConfig(Config):
    """The neck: the network between backbone and heads."""

    kind: Literal["c4", "fpn"] = "c4"
    """c4: RPN and RoI pooling on c4, conv5 on every RoI. fpn: p2..p6, two-layer box head."""
    channels: PositiveInt = 256
    """fpn: channels of every level."""
    norm: Literal["none", "batch", "group"] = "none"
    """fpn: norm after each convolution. batch: over all processes with loop.sync_batch_norm."""


class AnchorLossConfig(Config):
    """Sampling and losses of a network that classifies anchors and regresses their boxes."""

    fg_iou_thresh: Fraction = 0.7
    """IoU from which an anchor is foreground; each object's best anchors are foreground too."""
    bg_iou_thresh: Fraction = 0.3
    """IoU below which an anchor is background."""
    num_samples: PositiveInt = 256
    """Anchors sampled for the loss, per image."""
    fg_fraction: Fraction = 0.5
    """Largest share of foreground among them."""
    smooth_l1_beta: NonNegativeFloat = 1.0 / 9.0
    """Error at which smooth L1 becomes linear; 0 is L1."""


class RPNConfig(AnchorLossConfig):
    """Region proposal network."""

    num_convs: int = Field(default=1, ge=1, le=4)
    """Number of 3x3 convolutions, each with ReLU, before the two output layers."""
    anchor_sizes: PositiveFloats = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Square roots of anchor areas. c4: all on c4; fpn: one per level, p2 first."""
    anchor_ratios: PositiveFloats = (0.5, 1.0, 2.0)
    """Height over width."""
    round_anchors: bool = True
    """Anchors of whole pixels, as in torchvision; false: exact, as in detectron2."""
    pre_nms_topk_train: PositiveInt = 12000
    """Best anchors per level that enter NMS in training."""
    pre_nms_topk_test: PositiveInt = 6000
    """Best anchors per level that enter NMS at test."""
    post_nms_topk_train: PositiveInt = 2000
    """Proposals per image in training."""
    post_nms_topk_test: PositiveInt = 1000
    """Proposals per image at test."""
    nms_thresh: Fraction = 0.7
    """IoU above which the lower-scored proposal is dropped."""
    min_size: NonNegativeFloat = 1e-3
    """Proposals have sides above this; others are dropped. 0 drops those without area."""
    objectness_weight: NonNegativeFloat = 1.0
    """Weight of `rpn_objectness`."""
    box_weight: NonNegativeFloat = 1.0
    """Weight of `rpn_box`."""


class RegionLossConfig(Config):
    """Sampling and losses of a network that classifies regions and regresses their boxes."""

    fg_iou_thresh: Fraction = 0.5
    """IoU from which a proposal is foreground; below this it is background."""
    num_samples: PositiveInt = 512
    """Proposals sampled for the loss, per image."""
    fg_fraction: Fraction = 0.25
    """Largest share of foreground among them."""
    box_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (
        10.0,
        10.0,
        5.0,
        5.0,
    )
    """Scale of the targets (dx, dy, dw, dh)."""
    smooth_l1_beta: NonNegativeFloat = 1.0 / 9.0
    """Error at which smooth L1 becomes linear; 0 is L1."""


class RoIConfig(RegionLossConfig):
    """Region head: pooling, sampling, losses and post-processing."""

    pool: Literal["roi_pool", "roi_align"] = "roi_align"
    """Pooling operator."""
    resolution: PositiveInt | None = None
    """Side of the pooled map; null: 14 with c4, 7 with fpn and with VGG-16."""
    sampling_ratio: NonNegativeInt = 2
    """roi_align: samples along a bin's side; 0 adapts to the RoI's size."""
    aligned: bool = True
    """roi_align: half-pixel correction (torchvision's detectors were trained without it)."""
    num_convs: int = Field(default=0, ge=0, le=64)
    """fpn: number of 3x3 convolutions, each with ReLU, before the linear layers."""
    conv_dim: PositiveInt = 256
    """fpn: channels of these convolutions."""
    norm: Literal["none", "batch", "group"] = "none"
    """fpn: norm after each of them. batch: batch norm over the sampled RoIs, without padding, and
    over all processes with loop.sync_batch_norm."""
    num_fcs: int = Field(default=2, ge=1, le=64)
    """fpn: number of linear layers, each with ReLU, before the two output layers."""
    hidden_dim: PositiveInt = 1024
    """fpn: width of the linear layers."""
    fc_init: Literal["torch", "caffe2_xavier"] = "torch"
    """fpn: first weights of the linear layers: torch's default, or detectron2's c2_xavier_fill
    (a standard deviation 1.7 times as large, biases 0)."""
    global_context: bool = False
    """Pool the whole image as one more RoI, and join its feature to that of every RoI before the
    two output layers (ResNet paper, appendix B)."""
    class_agnostic_boxes: bool = False
    """One predicted box for all classes, as in Cascade R-CNN; false: a box for each class."""
    stages: int = Field(default=1, ge=1, le=3)
    """Number of stages of the region head; each works on the boxes of the stage before, and class
    scores are the mean over all stages (Cascade R-CNN, 2018)."""
    later_fg_iou_thresh: tuple[Fraction, Fraction] = (0.6, 0.7)
    """`fg_iou_thresh` of the second and third stage (Cascade R-CNN, 2018)."""
    later_box_scale: tuple[PositiveFloat, PositiveFloat] = (2.0, 3.0)
    """`box_weights` of the second and third stage, relative to those of the first."""
    class_weight: NonNegativeFloat = 1.0
    """Weight of `roi_class`."""
    box_weight: NonNegativeFloat = 1.0
    """Weight of `roi_box`."""
    score_thresh: Fraction = 0.05
    """Detections with a score at or below this are dropped."""
    nms_thresh: Fraction = 0.5
    """IoU above which the lower-scored detection of the same class is dropped."""
    max_detections: PositiveInt = 100
    """Largest number of detections per image."""
    drop_empty: Literal["first", "last"] = "first"
    """Detections without area are dropped before NMS (first; a side below 0.01 counts as none), or
    from the best `max_detections` (last)."""

    def resolution_with(self, neck: Literal["c4", "fpn"], backbone: BackboneKind) -> int:
        """Return the side of the pooled map with a neck and a backbone of these kinds."""
        return self.resolution or (7 if neck == "fpn" or backbone == "vgg16" else 14)

    def stage_config(self, stage: int) -> RegionLossConfig:
        """Return how a stage samples its boxes and computes its losses; stage 0 is the first.

        A later stage takes all boxes that the stage before moved, without a limit on foreground.
        """
        return RegionLossConfig(
            fg_iou_thresh=(self.fg_iou_thresh, *self.later_fg_iou_thresh)[stage],
            num_samples=self.num_samples,
            fg_fraction=self.fg_fraction if stage == 0 else 1.0,
            box_weights=self.box_weights_of(stage),
            smooth_l1_beta=self.smooth_l1_beta,
        )

    def box_weights_of(self, stage: int) -> tuple[float, float, float, float]:
        """Return the scale of a stage's targets; stage 0 is the first."""
        scale = (1.0, *self.later_box_scale)[stage]
        x, y, width, height = self.box_weights
        return x * scale, y * scale, width * scale, height * scale


class MaskConfig(Config):
    """Mask head."""

    num_convs: int = Field(default=4, ge=0, le=64)
    """fpn: number of 3x3 convolutions before the deconvolution; c4 uses conv5 instead."""
    hidden_dim: PositiveInt = 256
    """Channels of the convolutions and of the deconvolution."""
    norm: Literal["none", "batch", "group"] = "none"
    """fpn: norm after each 3x3 convolution. batch: batch norm over the foreground RoIs, and over
    all processes with loop.sync_batch_norm."""
    weight: NonNegativeFloat = 1.0
    """Weight of the loss `mask`."""
    aligned: bool = True
    """Half-pixel correction of targets, and exact boxes when pasting (torchvision has neither)."""
    binary_targets: bool = False
    """Whether a cell's target is 1 if the true mask covers half of it or more, otherwise 0. false:
    the share that it covers."""


class ModelConfig(Config):
    """Faster R-CNN or Mask R-CNN."""

    backbone: BackboneConfig = BackboneConfig()
    """Backbone."""
    neck: NeckConfig = NeckConfig()
    """C4 or FPN."""
    rpn: RPNConfig = RPNConfig()
    """Region proposal network."""
    roi: RoIConfig = RoIConfig()
    """Region head."""
    mask: MaskConfig = MaskConfig()
    """Mask head; used only by the task `segmentation`."""
    weights: PathText | None = None
    """Detector to start from: our safetensors, or a file of torchvision or detectron2. Classes are
    carried over by name; new ones start at random."""
    crowd_ioa_thresh: Fraction = 0.5
    """A candidate with at least this share of its area in a crowd region is not background."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.neck.kind == "fpn" and len(self.rpn.anchor_sizes) != 5:
            raise ValueError(
                "rpn.anchor_sizes: expected 5 with fpn (one a level), "
                f"got {len(self.rpn.anchor_sizes)}"
            )
        if self.rpn.bg_iou_thresh > self.rpn.fg_iou_thresh:
            raise ValueError(
                f"rpn.bg_iou_thresh: expected at most rpn.fg_iou_thresh "
                f"({self.rpn.fg_iou_thresh}), got {self.rpn.bg_iou_thresh}"
            )
        if self.backbone.kind == "vgg16":
            self._check_vgg16()
        self._check_head_layers()
        return self

    def _check_head_layers(self) -> None:
        is_c4 = self.neck.kind == "c4"
        if is_c4 and self.roi.num_convs:
            raise ValueError(
                "roi.num_convs: expected 0 with neck.kind=c4 (conv5 runs on every RoI), "
                f"got {self.roi.num_convs}"
            )
        if is_c4 and self.neck.norm != "none":
            raise ValueError(
                "neck.norm: expected none with neck.kind=c4 (it has no convolution), "
                f"got {self.neck.norm}"
            )
        if self.roi.norm != "none" and not self.roi.num_convs:
            raise ValueError(
                "roi.norm: expected none with roi.num_convs=0 (no convolution has a norm), "
                f"got {self.roi.norm}"
            )
        if self.roi.norm == "batch" and self.roi.global_context:
            raise ValueError(
                "roi.norm: expected none or group with roi.global_context (the whole image is "
                "one more RoI, which would have statistics of its own), got batch"
            )
        if self.mask.norm != "none" and (is_c4 or not self.mask.num_convs):
            where = "neck.kind=c4" if is_c4 else "mask.num_convs=0"
            raise ValueError(
                f"mask.norm: expected none with {where} (the mask head has no 3x3 convolution), "
                f"got {self.mask.norm}"
            )

    def _check_vgg16(self) -> None:
        if self.neck.kind != "c4":
            raise ValueError(
                "neck.kind: expected c4 with backbone.kind=vgg16 (it has one feature map, "
                f"conv5_3), got {self.neck.kind}"
            )
        if self.roi.resolution not in (None, 7):
            raise ValueError(
                "roi.resolution: expected 7 with backbone.kind=vgg16 (fc6 reads 7x7 cells), "
                f"got {self.roi.resolution}"
            )
