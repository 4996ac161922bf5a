"""Weights of whole detectors: ours, torchvision's and detectron2's, also with other classes."""

from detection.weights.from_torchvision import (
    from_torchvision_fasterrcnn,
    to_torchvision_fasterrcnn,
)
from detection.weights.loading import load_detector_weights

__all__ = ["from_torchvision_fasterrcnn", "load_detector_weights", "to_torchvision_fasterrcnn"]
