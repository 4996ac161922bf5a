"""Config schema of a run of detection or instance segmentation, with all its parts.

Boxes and lengths are in pixels of the resized image unless stated otherwise.
"""

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from detection.data_config import AugmentConfig, DataConfig, SplitConfig
from detection.model_config import (
    AnchorLossConfig,
    BackboneConfig,
    MaskConfig,
    ModelConfig,
    NeckConfig,
    RegionLossConfig,
    RoIConfig,
    RPNConfig,
)
from engine.schema import Config, Fraction, RunConfig

__all__ = [
    "SCHEMAS",
    "AnchorLossConfig",
    "ApProtocol",
    "AugmentConfig",
    "BackboneConfig",
    "BackendChoice",
    "DataConfig",
    "DetectionConfig",
    "EvaluationConfig",
    "MaskConfig",
    "ModelConfig",
    "NeckConfig",
    "RPNConfig",
    "RegionLossConfig",
    "RoIConfig",
    "SplitConfig",
]

ApProtocol = Literal["voc07", "voc12", "ilsvrc", "lvis"]
BackendChoice = Literal["auto", "pycocotools", "hotcoco"]


class EvaluationConfig(Config):
    """Evaluation and prediction: additions at test time, metrics, and drawings."""

    refine_boxes: bool = False
    """Box refinement: pool the predicted boxes again, predict from them, and join both predictions
    (Gidaris and Komodakis 2015; ResNet paper, appendix B)."""
    scales: tuple[PositiveInt, ...] = ()
    """Shorter sides of the images in multi-scale testing, rising; empty: `data.eval_short_side`.
    The cap on the longer side grows in proportion. A single one replaces `data.eval_short_side`."""
    merge: Literal["maxout", "union"] = "maxout"
    """How several scales are merged. maxout: proposals at `data.eval_short_side`; the features of
    each RoI are the maximum over the two scales at which its area is nearest 224 x 224 (the paper).
    union: the predictions of all scales are joined."""
    mirror: bool = False
    """union: predict on mirrored images, too."""
    union_nms_thresh: Fraction = 0.3
    """`model.roi.nms_thresh` where predictions are joined (`refine_boxes`, or `merge: union` of
    several scales or with `mirror`)."""
    vote_iou_thresh: Fraction | None = None
    """Box voting: a detection's box becomes the mean of the boxes of its class with at least this
    IoU, weighted by score. null: 0.5 where predictions are joined, otherwise no voting; 1: none."""
    draw_score_thresh: Fraction = 0.5
    """Detections with a lower score are not drawn."""
    protocols: tuple[ApProtocol, ...] = ()
    """Metrics in addition to COCO's: VOC's 11-point (voc07) or area (voc12) AP at IoU 0.5, the AP
    of ILSVRC detection, or LVIS's APs, for LVIS's files alone. With lvis its AP decides which
    checkpoint is best; COCO's AP takes objects that LVIS does not annotate for errors."""
    backend: BackendChoice = "auto"
    """Package that computes COCO's metrics. auto: during training hotcoco if it is installed, which
    is fast and gives the same numbers; pycocotools after the last step and in tools/eval.py."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales: expected rising numbers, got {list(self.scales)}")
        if self.mirror and self.merge == "maxout":
            raise ValueError("mirror: expected false, or merge=union as well, got merge=maxout")
        return self


class DetectionConfig(RunConfig):
    """A run of a detector, with or without a mask head."""

    task: Literal["detection", "segmentation"] = "detection"
    """Name of the task: detection, or segmentation for a detector with a mask head."""
    data: DataConfig = DataConfig()
    """Data."""
    model: ModelConfig = ModelConfig()
    """Network."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.task == "segmentation" and self.model.backbone.kind == "vgg16":
            raise ValueError(
                "model.backbone.kind: expected a residual or plain network with task=segmentation "
                "(masks need conv5's map of an RoI; VGG-16 has fc6 and fc7 there), got vgg16"
            )
        return self


SCHEMAS: dict[str, type[RunConfig]] = {
    "detection": DetectionConfig,
    "segmentation": DetectionConfig,
}
"""Config schema of each `task`."""
