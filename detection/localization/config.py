"""The localization part of a run's config: one class a picture, and where its object is.

Lengths are in pixels of the resized picture unless said otherwise.
"""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from backbones.config import DemoConfig, ViewConfig, WindowConfig
from detection.config import BackboneConfig
from engine.schema import BadInputPolicy, Config, Fraction, PathText, PositiveFloats, RunConfig

Level = Literal["c2", "c3", "c4", "c5"]


class DataConfig(Config):
    """Pictures with one class each, its boxes, and the policies for bad ones."""

    kind: Literal["ilsvrc", "tiny_imagenet"] = "ilsvrc"
    """ilsvrc: `Annotations/`, `Data/` and `ImageSets/CLS-LOC`. tiny_imagenet: `wnids.txt`,
    `train/` and `val/` with their box files."""
    root: PathText = ""
    """Folder that holds these."""
    demo: DemoConfig | None = None
    """tiny_imagenet: when set, drawn scenes are made in this layout under `demo.root`."""
    on_bad_box: BadInputPolicy = "skip"
    """A box of no size or outside its picture: stop, or drop it and name it at the start."""
    on_bad_image: BadInputPolicy = "error"
    """A truncated picture, or one of another size than annotated: stop, or skip and count it. A
    missing one stops in any case."""


class AugmentConfig(WindowConfig):
    """What happens to a training picture; its boxes follow."""

    min_visible: Fraction = 0.5
    """Least share of an object's box in the window; windows with less of every box are redrawn."""
    color_jitter: Fraction = 0.0
    """Strength of brightness, contrast and saturation changes; hue changes by a tenth of it."""


class OneClassModelConfig(Config):
    """What the networks of both stages share."""

    backbone: BackboneConfig = BackboneConfig()
    """Residual network."""


class LocalizerConfig(OneClassModelConfig):
    """A region proposal network whose outputs are per class, on a classification network."""

    level: Level = "c5"
    """Features that the head sees: c5 in the paper; on small pictures c4 has more places."""
    per_class: bool = True
    """A logit and a box for each class; else one of each for all classes, to compare."""
    anchor_sizes: PositiveFloats = (64.0, 128.0, 256.0)
    """Square roots of anchor areas."""
    anchor_ratios: PositiveFloats = (0.5, 1.0, 2.0)
    """Height over width."""
    fg_iou_thresh: Fraction = 0.7
    """IoU from which an anchor is foreground; each object's best anchors are too."""
    bg_iou_thresh: Fraction = 0.3
    """IoU under which an anchor is background."""
    num_samples: PositiveInt = 8
    """Anchors in the loss for each picture."""
    fg_fraction: Fraction = 0.5
    """Largest share of foreground among them."""
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    """Of the deltas (the paper); or 1 - generalized IoU of the decoded boxes."""
    smooth_l1_beta: NonNegativeFloat = 1.0 / 9.0
    """Where smooth L1 turns linear; 0 is L1."""
    class_weight: NonNegativeFloat = 1.0
    """Weight of `localization_class`."""
    box_weight: NonNegativeFloat = 1.0
    """Weight of `localization_box`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bg_iou_thresh > self.fg_iou_thresh:
            raise ValueError("bg_iou_thresh: expected at most fg_iou_thresh")
        behind = int(self.level[1:])
        if self.backbone.frozen_stages > behind:
            raise ValueError(
                f"backbone.frozen_stages: expected at most {behind} with level={self.level}, "
                f"got {self.backbone.frozen_stages}"
            )
        return self


class EvaluationConfig(ViewConfig):
    """How a picture is tested."""

    view: Literal["center", "dense"] = "center"
    """The centre crop; or the whole picture, fully convolutional, at all of `scales`."""
    mirror: bool = False
    """Whether every view is tested mirrored as well, and every region of the second stage."""
    merge: Literal["best", "vote"] = "best"
    """The box of the highest score; or the mean, by score, of those that overlap it."""
    vote_iou_thresh: Fraction = Field(default=0.5, gt=0.0)
    """vote: IoU with the best box from which a box has a say."""
    candidates: PositiveInt = 100
    """Best boxes of each view that may have a say, or become proposals of the second stage."""
    classifier: PathText | None = None
    """Run, checkpoint or weights of tools/pretrain_backbone.py with the same classes; its best five
    are looked for too, besides the given class."""


class OneClassConfig(RunConfig):
    """A run on pictures of one class each."""

    task: str
    """Tag by which tools choose the task."""
    data: DataConfig = DataConfig()
    """Data."""
    augment: AugmentConfig = AugmentConfig()
    """Training-time augmentation."""
    model: OneClassModelConfig = OneClassModelConfig()
    """Network."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Testing."""


class LocalizationConfig(OneClassConfig):
    """The first stage: boxes of a class from the whole picture."""

    task: Literal["localization"] = "localization"
    """Tag by which tools choose the task."""
    model: LocalizerConfig = LocalizerConfig()
    """Network."""


class RegionClassifierConfig(OneClassModelConfig):
    """R-CNN: proposals cut out of the picture, warped, and each put through the network."""

    localizer: PathText = ""
    """Run of the first stage, or its weights; its boxes are the proposals."""
    num_proposals: PositiveInt = 200
    """Proposals of a picture and class."""
    nms_thresh: Fraction = 0.7
    """IoU above which the lower-scored proposal goes."""
    side: PositiveInt = 224
    """Sides of a proposal after warping."""
    num_samples: PositiveInt = 4
    """Proposals in the loss for each picture."""
    fg_fraction: Fraction = 0.25
    """Largest share of foreground among them."""
    fg_iou_thresh: Fraction = 0.5
    """IoU from which a proposal is foreground; below it is background."""
    box_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (
        10.0,
        10.0,
        5.0,
        5.0,
    )
    """Scale of the targets (dx, dy, dw, dh)."""
    smooth_l1_beta: NonNegativeFloat = 1.0 / 9.0
    """Where smooth L1 turns linear; 0 is L1."""


class LocalizationRegionsConfig(OneClassConfig):
    """The second stage: the first one's proposals scored and moved anew."""

    task: Literal["localization_regions"] = "localization_regions"
    """Tag by which tools choose the task."""
    model: RegionClassifierConfig = RegionClassifierConfig()
    """Network."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model.localizer:
            raise ValueError("model.localizer: expected a run of task localization, got nothing")
        return self
