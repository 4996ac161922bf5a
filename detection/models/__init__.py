"""Faster R-CNN and its parts."""

from detection.models.anchors import AnchorGenerator
from detection.models.box_head import BoxPredictor, C4BoxHead, DetectSettings, FPNBoxHead
from detection.models.faster_rcnn import DetectorSettings, FasterRCNN, PoolSettings
from detection.models.proposals import ProposalSettings
from detection.models.rpn import RPNHead, RPNOutput

__all__ = [
    "AnchorGenerator",
    "BoxPredictor",
    "C4BoxHead",
    "DetectSettings",
    "DetectorSettings",
    "FPNBoxHead",
    "FasterRCNN",
    "PoolSettings",
    "ProposalSettings",
    "RPNHead",
    "RPNOutput",
]
