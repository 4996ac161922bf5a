"""The detection part of a run's config. Defaults are the field's; configs say where they differ.

Boxes and lengths are in pixels of the resized image unless said otherwise.
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

from backbones.config import DemoConfig, NetworkConfig
from engine.schema import (
    BadInputPolicy,
    Config,
    Fraction,
    PathText,
    PositiveFloats,
    PositiveInts,
    RunConfig,
)

BackboneKind = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Protocol = Literal["voc07", "voc12", "ilsvrc"]
EngineChoice = Literal["auto", "pycocotools", "hotcoco"]


class SplitConfig(Config):
    """A folder of images and its COCO JSON."""

    images: PathText = ""
    """Folder to which the JSON's `file_name`s are relative."""
    annotations: PathText = ""
    """COCO JSON file."""


class AugmentConfig(Config):
    """What happens to a training image."""

    short_sides: PositiveInts = (640, 672, 704, 736, 768, 800)
    """Target lengths of the shorter side; one is drawn for each batch."""
    max_side: PositiveInt = 1333
    """Cap on the longer side."""
    flip_prob: Fraction = 0.5
    """Chance of a left-right mirror."""
    vertical_flip_prob: Fraction = 0.0
    """Chance of an up-down mirror (microscopes and satellites, not street scenes)."""
    color_jitter: Fraction = 0.0
    """Strength of brightness, contrast and saturation changes; hue changes by a tenth of it."""


class DataConfig(Config):
    """Images, annotations and the policies for bad ones."""

    train: SplitConfig = SplitConfig()
    """Training images; the classes are read from this JSON."""
    val: SplitConfig = SplitConfig()
    """Validation images."""
    demo: DemoConfig | None = None
    """When set, demo images are made under `demo.root` if a split lies there and is missing."""
    cache: bool = True
    """Keep a cached copy beside a JSON of 20 MB or more; it loads over ten times as fast."""
    keep_empty: bool = True
    """Train on images without objects."""
    on_bad_box: BadInputPolicy = "error"
    """An object whose box has no size, has NaN or lies outside its image, whose area is impossible,
    or, where masks are read, without a readable one: stop, or drop it and count it."""
    on_bad_image: BadInputPolicy = "error"
    """An image that is missing at the start, truncated, or of another size than annotated: stop, or
    skip and count it. One that goes missing later stops in any case."""
    augment: AugmentConfig = AugmentConfig()
    """Training-time augmentation."""
    eval_short_side: PositiveInt = 800
    """Shorter side at evaluation and prediction."""
    eval_max_side: PositiveInt = 1333
    """Cap on the longer side at evaluation and prediction."""
    aspect_groups: PositiveInt = 8
    """The most aspect-ratio groups from which training batches are drawn; 1 mixes all."""
    size_divisor: PositiveInt = 32
    """Batches are padded to multiples of this."""


class BackboneConfig(NetworkConfig):
    """The residual network."""

    kind: BackboneKind = "resnet101"
    """Depth."""
    norm: Literal["batch", "frozen", "group"] = "frozen"
    """Batch norm; batch norm wholly fixed (the paper's choice for detection); group norm."""
    frozen_stages: int = Field(default=2, ge=0, le=5)
    """Stages that do not train: 0 none, 1 conv1, 2 conv1 and conv2, ... 5 all."""


class NeckConfig(Config):
    """What stands between backbone and heads."""

    kind: Literal["c4", "fpn"] = "c4"
    """c4: RPN and RoI pooling on c4, conv5 on every RoI. fpn: p2..p6, two-layer box head."""
    channels: PositiveInt = 256
    """fpn: channels of every level."""
    norm: Literal["none", "batch", "group"] = "none"
    """fpn: norm after each convolution."""


class RPNConfig(Config):
    """Region proposal network."""

    anchor_sizes: PositiveFloats = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Square roots of anchor areas: all on c4; one a level, p2 first, with fpn."""
    anchor_ratios: PositiveFloats = (0.5, 1.0, 2.0)
    """Height over width."""
    fg_iou_thresh: Fraction = 0.7
    """IoU from which an anchor is foreground; each object's best anchors are too."""
    bg_iou_thresh: Fraction = 0.3
    """IoU under which an anchor is background."""
    num_samples: PositiveInt = 256
    """Anchors in the loss for each image."""
    fg_fraction: Fraction = 0.5
    """Largest share of foreground among them."""
    pre_nms_topk_train: PositiveInt = 12000
    """Best anchors (a level) that enter NMS in training."""
    pre_nms_topk_test: PositiveInt = 6000
    """The same at test."""
    post_nms_topk_train: PositiveInt = 2000
    """Proposals for each image in training."""
    post_nms_topk_test: PositiveInt = 1000
    """The same at test."""
    nms_thresh: Fraction = 0.7
    """IoU above which the lower-scored proposal goes."""
    min_size: NonNegativeFloat = 1e-3
    """Proposals with a shorter side go."""
    smooth_l1_beta: NonNegativeFloat = 1.0 / 9.0
    """Where smooth L1 turns linear; 0 is L1."""
    objectness_weight: NonNegativeFloat = 1.0
    """Weight of `rpn_objectness`."""
    box_weight: NonNegativeFloat = 1.0
    """Weight of `rpn_box`."""


class RegionLossConfig(Config):
    """Sampling and losses of a network that classifies regions and moves their boxes."""

    fg_iou_thresh: Fraction = 0.5
    """IoU from which a proposal is foreground; below it is background."""
    num_samples: PositiveInt = 512
    """Proposals in the loss for each image."""
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
    """Where smooth L1 turns linear; 0 is L1."""


class RoIConfig(RegionLossConfig):
    """Region head: pooling, sampling, losses and post-processing."""

    pool: Literal["roi_pool", "roi_align"] = "roi_align"
    """Pooling operator."""
    resolution: PositiveInt | None = None
    """Side of the pooled map; none is 14 with c4 and 7 with fpn."""
    sampling_ratio: NonNegativeInt = 2
    """roi_align: samples along a bin's side; 0 adapts to the RoI's size."""
    aligned: bool = True
    """roi_align: half-pixel correction (torchvision's detectors were trained without it)."""
    hidden_dim: PositiveInt = 1024
    """fpn: width of the two hidden layers."""
    stages: int = Field(default=1, ge=1, le=3)
    """How often the head runs, each time on the boxes that the time before it gave."""
    later_fg_iou_thresh: tuple[Fraction, Fraction] = (0.6, 0.7)
    """`fg_iou_thresh` of the second and third stage (Cascade R-CNN, 2018)."""
    later_box_scale: tuple[PositiveFloat, PositiveFloat] = (2.0, 3.0)
    """`box_weights` of the second and third stage, relative to those of the first."""
    class_weight: NonNegativeFloat = 1.0
    """Weight of `roi_class`."""
    box_weight: NonNegativeFloat = 1.0
    """Weight of `roi_box`."""
    score_thresh: Fraction = 0.05
    """Detections below go."""
    nms_thresh: Fraction = 0.5
    """IoU above which the lower-scored detection of a class goes."""
    max_detections: PositiveInt = 100
    """Detections for each image."""

    def resolution_with(self, neck: Literal["c4", "fpn"]) -> int:
        """Return the side of the pooled map with a neck of this kind."""
        return self.resolution or {"c4": 14, "fpn": 7}[neck]

    def fg_thresh_of(self, stage: int) -> float:
        """Return the IoU from which a box is foreground to a stage, 0 the first."""
        return (self.fg_iou_thresh, *self.later_fg_iou_thresh)[stage]

    def box_weights_of(self, stage: int) -> tuple[float, float, float, float]:
        """Return the scale of a stage's targets, 0 the first."""
        scale = (1.0, *self.later_box_scale)[stage]
        x, y, width, height = self.box_weights
        return x * scale, y * scale, width * scale, height * scale


class MaskConfig(Config):
    """Mask head."""

    num_convs: int = Field(default=4, ge=0, le=64)
    """fpn: 3x3 convolutions before the deconvolution; with c4 conv5 stands in their place."""
    hidden_dim: PositiveInt = 256
    """Channels of the convolutions and of the deconvolution."""
    weight: NonNegativeFloat = 1.0
    """Weight of the loss `mask`."""
    aligned: bool = True
    """Half-pixel correction of targets and exact boxes when pasting (torchvision has neither)."""


class ModelConfig(Config):
    """Faster R-CNN."""

    backbone: BackboneConfig = BackboneConfig()
    """Residual network."""
    neck: NeckConfig = NeckConfig()
    """C4 or FPN."""
    rpn: RPNConfig = RPNConfig()
    """Region proposal network."""
    roi: RoIConfig = RoIConfig()
    """Region head."""
    mask: MaskConfig = MaskConfig()
    """Mask head, which a run of the task `segmentation` has."""
    weights: PathText | None = None
    """Detector weights to start from: our safetensors or torchvision's; classes must agree."""
    crowd_ioa_thresh: Fraction = 0.5
    """Share of its area in a crowd region from which a candidate is left out of the losses."""

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
        return self


class EvaluationConfig(Config):
    """Scoring and its images."""

    draw_score_thresh: Fraction = 0.5
    """Detections below are not drawn."""
    protocols: tuple[Protocol, ...] = ()
    """Rules beside COCO's: VOC's 11-point or area AP at IoU 0.5, or ILSVRC detection's."""
    engine: EngineChoice = "auto"
    """What computes COCO's numbers. auto: during training hotcoco, a fast package that gives the
    same ones, where it is installed; pycocotools for the numbers after the last step, and for
    tools/eval.py."""


class DetectionConfig(RunConfig):
    """A run of a detector, with a mask head or without one."""

    task: Literal["detection", "segmentation"] = "detection"
    """Tag by which tools choose the task."""
    data: DataConfig = DataConfig()
    """Data."""
    model: ModelConfig = ModelConfig()
    """Network."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Scoring."""


SCHEMAS: dict[str, type[RunConfig]] = {
    "detection": DetectionConfig,
    "segmentation": DetectionConfig,
}
"""Schema of each `task` that a config can name."""
