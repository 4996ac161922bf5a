"""Build any backbone by the name of its architecture, with random weights."""

import re
from typing import Any

from backbones.blocks import Shortcut
from backbones.features import Backbone
from backbones.norm import NormKind
from backbones.resnet import build_resnet, cifar_resnet
from backbones.vgg import VGG16


def build_network(
    kind: str,
    *,
    num_classes: int | None = None,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut | None = None,
    width_multiplier: float = 1.0,
) -> Backbone:
    """Build resnet18 ... resnet152, plain18, plain34, vgg16, cifar_resnet20 ..., cifar_plain20 ...

    num_classes: outputs of `fc`; None builds no `fc`. shortcut: None means the architecture's
    default: B for ImageNet, A for CIFAR. width_multiplier: see `scaled_channels`. VGG-16 has
    neither norms nor shortcuts.
    """
    common: dict[str, Any] = {"num_classes": num_classes, "width_multiplier": width_multiplier}
    if kind == "vgg16":
        return VGG16(**common)
    common |= {"norm": norm, "norm_eps": norm_eps}
    # the config has checked the name
    if cifar := re.fullmatch(r"cifar_(resnet|plain)(\d+)", kind):
        shortcut = "none" if cifar[1] == "plain" else shortcut or "A"
        return cifar_resnet(int(cifar[2]), shortcut=shortcut, **common)
    return build_resnet(kind, stride_in_1x1=stride_in_1x1, shortcut=shortcut or "B", **common)
