"""What a backbone or a pyramid promises to every head, by feature name c2..c5, p2..p6."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureSpec:
    """Shape of one feature map: its channels, and its stride in image pixels a cell."""

    channels: int
    stride: int
