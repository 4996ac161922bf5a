"""Residual networks and the feature pyramid on them."""

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
