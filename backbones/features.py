"""Description of a backbone's feature maps: channels and stride, by name (c2..c5, p2..p6)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureSpec:
    """Description of one feature map: its channels, and its stride in image pixels per cell."""

    channels: int
    stride: int
