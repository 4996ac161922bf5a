"""Residual networks and the feature pyramid on them."""

import os

from backbones.features import FeatureSpec
from backbones.fpn import FPN
from backbones.resnet import (
    ResNet,
    build_resnet,
    cifar_resnet,
    plain18,
    plain34,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)

__all__ = [
    "FPN",
    "FeatureSpec",
    "ResNet",
    "build_resnet",
    "cifar_resnet",
    "plain18",
    "plain34",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]

# albumentations asks the network for newer releases at import, unless told not to before it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
