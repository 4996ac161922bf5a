"""Object detection: structures, operations, models, losses, tasks and evaluation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.predict import Detector, load_detector
    from detection.structures import Detections

__all__ = ["Detections", "Detector", "load_detector"]

_MODULE_OF = {"Detections": "structures", "Detector": "predict", "load_detector": "predict"}


def __getattr__(name: str) -> Any:
    """Import an exported name on its first use: the network's modules take seconds to import."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
