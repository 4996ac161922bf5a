"""Config of a localization run: one class per image, and the box of its object.

Lengths are in pixels of the resized image unless stated otherwise.
"""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from backbones.config import CropConfig, DemoConfig, EvaluationViewConfig
from detection.config import AnchorLossConfig, BackboneConfig, RegionLossConfig
from engine.schema import BadInputPolicy, Config, Fraction, PathText, PositiveFloats, RunConfig

Level = Literal["c2", "c3", "c4", "c5"]


class DataConfig(Config):
    """Images with one class each, their boxes, and the policies for bad data."""

    kind: Literal["ilsvrc", "tiny_imagenet"] = "ilsvrc"
    """Layout. ilsvrc: `Annotations/`, `Data/` and `ImageSets/CLS-LOC`. tiny_imagenet: `wnids.txt`,
    `train/` and `val/` with their box files."""
    root: PathText = ""
    """Folder of the data set."""
    demo: DemoConfig | None = None
    """tiny_imagenet: if set, synthetic scenes are drawn in this layout under `demo.root`."""
    on_bad_box: BadInputPolicy = "skip"
    """A box of zero size or outside its image: error = stop, skip = drop it and log its name."""
    on_bad_image: BadInputPolicy = "error"
    """A truncated image, or one whose size differs from its annotation: error = stop, skip = skip
    and count it. An image that disappears during the run always stops it."""


class AugmentConfig(CropConfig):
    """Augmentation of training images and their boxes."""

    min_visible: Fraction = 0.5
    """Minimum fraction of a box's area inside the crop. A crop in which every box is below it is
    sampled again."""
    color_jitter: Fraction = 0.0
    """Strength of brightness, contrast and saturation jitter; hue jitter is a tenth of it."""


class LocalizationBaseModelConfig(Config):
    """Settings that the networks of both stages share."""

    backbone: BackboneConfig = BackboneConfig()
    """Backbone."""


class LocalizerConfig(LocalizationBaseModelConfig, AnchorLossConfig):
    """A region proposal network with per-class outputs, on a classification network."""

    level: Level = "c5"
    """Feature map that the head reads: c5 in the paper; on small images c4 has more cells."""
    per_class: bool = True
    """true: a logit and a box for each class. false: class-agnostic outputs, for comparison."""
    anchor_sizes: PositiveFloats = (64.0, 128.0, 256.0)
    """Square roots of anchor areas."""
    anchor_ratios: PositiveFloats = (0.5, 1.0, 2.0)
    """Height over width."""
    num_samples: PositiveInt = 8
    """Anchors sampled for the loss, per image."""
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    """smooth_l1: of the deltas (the paper). giou: 1 - generalized IoU of the decoded boxes."""
    class_weight: NonNegativeFloat = 1.0
    """Weight of `localization_class`."""
    box_weight: NonNegativeFloat = 1.0
    """Weight of `localization_box`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bg_iou_thresh > self.fg_iou_thresh:
            raise ValueError(
                f"bg_iou_thresh: expected at most fg_iou_thresh={self.fg_iou_thresh:g},"
                f" got {self.bg_iou_thresh:g}"
            )
        if self.backbone.kind == "vgg16":
            raise ValueError(
                "backbone.kind: expected a residual or plain network, whose c2 to c5 `level` "
                "chooses from, got vgg16"
            )
        last_stage = int(self.level[1:])
        if self.backbone.frozen_stages > last_stage:
            raise ValueError(
                f"backbone.frozen_stages: expected at most {last_stage} with level={self.level}, "
                f"got {self.backbone.frozen_stages}"
            )
        return self


class EvaluationConfig(EvaluationViewConfig):
    """Views of an image in evaluation, and how their boxes are merged."""

    view: Literal["center", "dense"] = "center"
    """center: the center crop. dense: the whole image, fully convolutional, at all of `scales`."""
    mirror: bool = False
    """Whether to evaluate horizontally flipped views (in the second stage: regions) as well."""
    merge: Literal["best", "vote"] = "best"
    """best: the box with the highest score. vote: the score-weighted mean of the boxes that overlap
    it."""
    vote_iou_thresh: Fraction = Field(default=0.5, gt=0.0)
    """vote: minimum IoU with the best box for a box to be averaged."""
    candidates: PositiveInt = 100
    """Boxes per view, by score, that can be averaged or become proposals of the second stage."""
    classifier: PathText | None = None
    """Run, checkpoint or weights of tools/pretrain_backbone.py with the same classes. If set, its
    five most probable classes are localized too, besides the annotated class."""

    @property
    def short_side(self) -> int:
        """Shorter side of the resized image that all views are made from."""
        return max(self.scales) if self.view == "dense" else self.resize


class LocalizationBaseConfig(RunConfig):
    """Base config of both localization stages."""

    task: str
    """Task name, by which the commands choose the task."""
    data: DataConfig = DataConfig()
    """Data set."""
    augment: AugmentConfig = AugmentConfig()
    """Training-time augmentation."""
    model: LocalizationBaseModelConfig = LocalizationBaseModelConfig()
    """Network."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation views and merging."""


class LocalizationConfig(LocalizationBaseConfig):
    """First stage: predicts boxes of a class from the whole image."""

    task: Literal["localization"] = "localization"
    """Task name, by which the commands choose the task."""
    model: LocalizerConfig = LocalizerConfig()
    """Network."""


class RegionClassifierConfig(LocalizationBaseModelConfig, RegionLossConfig):
    """R-CNN: each proposal is cropped from the image, warped and classified by the network."""

    localizer: PathText = ""
    """Run folder or weights of the first stage; its boxes are the proposals."""
    num_proposals: PositiveInt = 200
    """Maximum number of proposals per image and class."""
    nms_thresh: Fraction = 0.7
    """IoU above which NMS removes the lower-scored proposal."""
    side: PositiveInt = 224
    """Side of a proposal after warping, in pixels."""
    num_samples: PositiveInt = 4
    """Proposals sampled per image for the loss."""


class LocalizationRegionsConfig(LocalizationBaseConfig):
    """Second stage: scores and refines the proposals of the first stage."""

    task: Literal["localization_regions"] = "localization_regions"
    """Task name, by which the commands choose the task."""
    model: RegionClassifierConfig = RegionClassifierConfig()
    """Network."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model.localizer:
            raise ValueError("model.localizer: expected a run of task localization, got nothing")
        return self
