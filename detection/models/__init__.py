"""Faster and Mask R-CNN and their parts."""

from detection.models.anchors import AnchorGenerator
from detection.models.box_head import (
    BoxPredictor,
    BoxStage,
    C4BoxHead,
    FPNBoxHead,
)
from detection.models.faster_rcnn import FasterRCNN
from detection.models.mask_head import MaskHead
from detection.models.rpn import RPNHead, RPNOutput

__all__ = [
    "AnchorGenerator",
    "BoxPredictor",
    "BoxStage",
    "C4BoxHead",
    "FPNBoxHead",
    "FasterRCNN",
    "MaskHead",
    "RPNHead",
    "RPNOutput",
]
