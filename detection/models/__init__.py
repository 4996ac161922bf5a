"""Faster and Mask R-CNN and their parts."""

from detection.models.anchors import AnchorGenerator
from detection.models.box_head import (
    BoxPredictor,
    BoxStage,
    C4BoxHead,
    DetectSettings,
    FPNBoxHead,
)
from detection.models.faster_rcnn import DetectorSettings, FasterRCNN, PoolSettings
from detection.models.mask_head import MaskHead
from detection.models.proposals import ProposalSettings
from detection.models.rpn import RPNHead, RPNOutput

__all__ = [
    "AnchorGenerator",
    "BoxPredictor",
    "BoxStage",
    "C4BoxHead",
    "DetectSettings",
    "DetectorSettings",
    "FPNBoxHead",
    "FasterRCNN",
    "MaskHead",
    "PoolSettings",
    "ProposalSettings",
    "RPNHead",
    "RPNOutput",
]
