"""Backbones: the base class of all networks, and the description of their feature maps (c2..c5).

B images, H x W pixels, C channels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from backbones.blocks import Pool
from backbones.kernels.pooling import mean_over_cells

_LEAST_CHANNELS = 8


@dataclass(frozen=True)
class FeatureSpec:
    """Description of one feature map: its channels, and its stride in image pixels per cell."""

    channels: int
    stride: int


class Backbone(nn.Module, ABC):
    """A network that computes feature maps in stages, with or without a linear classifier `fc`.

    A subclass fills `feature_specs`, sets `fc` (an identity if there is none), and says what its
    stages are.
    """

    fc: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.feature_specs: dict[str, FeatureSpec] = {}
        self.num_frozen = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised pixels (B, 3, H, W) to logits (B, num_classes).

        Without `fc` the result is the last feature after global average pooling, (B, C).
        """
        last = list(self.features(x).values())[-1]
        logits: Tensor = self.fc(mean_over_cells(last))
        return logits

    @abstractmethod
    def features(self, x: Tensor, upto: int = 5) -> dict[str, Tensor]:
        """Map normalised pixels (B, 3, H, W) to the features up to c{upto} (see `feature_specs`).

        Height and width of a feature are the image's divided by its stride, rounded up (but c5 of
        VGG-16 is always one cell).
        """

    @abstractmethod
    def stage(self, x: Tensor, number: int) -> Tensor:
        """Run only the stage that computes c{number}, on the output of the previous stage."""

    def pool_then_stage(self, x: Tensor, number: int, *, pool: Pool) -> Tensor:
        """Return stage(pool(x, 1), number) for a linear `pool`."""
        return self.stage(pool(x, 1), number)

    def freeze_stages(self, count: int) -> None:
        """Freeze the first `count` stages: 0 none, 1 conv1, 2 conv1 and conv2, ... 5 all.

        Their parameters get no gradient, and their norms use the stored statistics, even in
        training mode.
        """
        self.num_frozen = count
        for index, modules in enumerate(self.stages()):
            for module in modules:
                module.requires_grad_(index >= count)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen stages always stay in evaluation mode."""
        super().train(mode)
        for modules in self.stages()[: self.num_frozen]:
            for module in modules:
                module.eval()
        return self

    @abstractmethod
    def stages(self) -> list[list[nn.Module]]:
        """Return the modules of conv1, conv2, ..., without the classifier `fc`."""


def scaled_channels(channels: int, multiplier: float) -> int:
    """Return a layer's channels in a network of another width: rounded, and at least 8."""
    return max(_LEAST_CHANNELS, round(channels * multiplier))
