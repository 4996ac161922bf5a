"""Residual networks (ResNet), VGG-16 and feature pyramid networks (FPN)."""

import os

from backbones.features import Backbone, FeatureSpec
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
from backbones.vgg import VGG16, vgg16

__all__ = [
    "FPN",
    "VGG16",
    "Backbone",
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
    "vgg16",
]

# albumentations looks for a newer release on the network when it is imported. This variable
# disables the request, and it must be set before the import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
