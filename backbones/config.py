"""Config sections shared by all tasks that have a backbone."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from engine.schema import Config, Fraction, PathText, PositiveInts

BackboneKind = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "plain18",
    "plain34",
    "vgg16",
]
"""The ImageNet networks, which all tasks can use."""


class DemoConfig(Config):
    """Synthetic demo images, drawn on first use: scenes for a detector, or single objects."""

    root: PathText = "data/demo"
    """Folder where `train/` and `val/` are written."""
    num_train: PositiveInt = 240
    """Training images."""
    num_val: PositiveInt = 60
    """Validation images."""
    seed: NonNegativeInt = 0
    """Random seed of the scenes."""


class NetworkConfig(Config):
    """Backbone: weights, norm layers and pixel normalisation.

    Subclasses add `kind`, the architectures that they allow.
    """

    weights: PathText | None = None
    """Pretrained weights: ours, or a torchvision, timm, detectron2 or Caffe2 file; null: random."""
    width_multiplier: PositiveFloat = 1.0
    """Factor of the channels of every layer, rounded, at least 8; for small experiments."""
    pixels: Literal["auto", "rgb", "bgr"] = "auto"
    """Pixels that `weights`, and a detector of detectron2, expect: rgb, normalised as below; bgr,
    without division by the std (MSRA); auto: read from the file."""
    norm: Literal["batch", "frozen", "fixed_statistics", "group"] = "batch"
    """Norm layers: batch norm; frozen batch norm (the paper's choice for detection); batch norm
    with the stored statistics, whose weight and bias train; group norm. No effect on VGG-16."""
    norm_eps: PositiveFloat = 1e-5
    """Constant added to the variance."""
    stride_in_1x1: bool = False
    """Bottleneck stride on the 1x1 convolution (2015 paper, MSRA), not the 3x3 (torchvision)."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB mean, subtracted from the pixels, on the scale 0..255."""
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)
    """RGB standard deviation, which divides the pixels, on the scale 0..255."""

    @property
    def has_norms(self) -> bool:
        """Whether the network has norm layers."""
        return getattr(self, "kind", None) != "vgg16"  # subclasses have `kind`


class CropConfig(Config):
    """Random crop of a training image. Lengths are in pixels."""

    crop: PositiveInt = 224
    """Side of the square network input."""
    short_sides: tuple[PositiveInt, PositiveInt] | None = None
    """When set, the shorter side is resized to a random length in this range, then a random square
    is cropped (the paper)."""
    area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Without `short_sides`: range of the crop's share of the image area; the crop is resized."""
    aspect: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Without `short_sides`: range of the crop's width / height."""
    flip_prob: Fraction = 0.5
    """Probability of a horizontal flip."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # each range must rise and stay above this exclusive lower bound
        floors = {"area": 0, "aspect": 0, "short_sides": self.crop - 1}
        for key, floor in floors.items():
            bounds = getattr(self, key)
            if bounds is not None and not floor < bounds[0] <= bounds[1]:
                low, high = bounds
                raise ValueError(
                    f"{key}: expected two rising numbers above {floor}, got {low} and {high}"
                )
        return self


class EvaluationViewConfig(Config):
    """Image sizes at test time, in pixels."""

    resize: PositiveInt = 256
    """Length of the shorter side before the centre crop."""
    crop: PositiveInt = 224
    """Side of the square crop."""
    scales: PositiveInts = (224, 256, 384, 480, 640)
    """Fully convolutional testing: lengths of the shorter side."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.resize < self.crop:
            raise ValueError(f"resize: expected at least crop ({self.crop}), got {self.resize}")
        return self
