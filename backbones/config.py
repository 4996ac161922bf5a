"""The parts of a config that the tasks on a residual backbone share."""

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from engine.schema import Config, Fraction, PathText, PositiveInts


class DemoConfig(Config):
    """Images to be drawn on first use: scenes for a detector, or their objects cut out."""

    root: PathText = "data/demo"
    """Folder that receives `train/` and `val/`."""
    num_train: PositiveInt = 240
    """Training images."""
    num_val: PositiveInt = 60
    """Validation images."""
    seed: NonNegativeInt = 0
    """Seed of the scenes."""


class NetworkConfig(Config):
    """A residual network: its weights, norm and pixels. Who uses it adds the depths it allows."""

    weights: PathText | None = None
    """Pretrained weights: ours, or a torchvision, timm, detectron2 or Caffe2 file; none: random."""
    pixels: Literal["auto", "rgb", "bgr"] = "auto"
    """Channels that `weights` take: rgb, normalised as below; bgr, not divided (MSRA); auto: the
    file tells."""
    norm: Literal["batch", "frozen", "group"] = "batch"
    """Batch norm; batch norm wholly fixed (the paper's choice for detection); group norm."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance."""
    stride_in_1x1: bool = False
    """Bottleneck stride on the 1x1 convolution (2015 paper, MSRA), not the 3x3 (torchvision)."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB mean subtracted, on the scale 0..255."""
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)
    """RGB standard deviation divided by, on the scale 0..255."""


class WindowConfig(Config):
    """What is cut out of a training image. Lengths are in pixels."""

    crop: PositiveInt = 224
    """Side of the square that the network sees."""
    short_sides: tuple[PositiveInt, PositiveInt] | None = None
    """When set, the shorter side is drawn from this range, then a square cut out (the paper)."""
    area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Without `short_sides`: share of the image's area that is cut out and resized."""
    aspect: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """The same: range of width over height."""
    flip_prob: Fraction = 0.5
    """Chance of a left-right mirror."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        floors = {"area": 0, "aspect": 0, "short_sides": self.crop - 1}
        for key, floor in floors.items():
            bounds = getattr(self, key)
            if bounds is not None and not floor < bounds[0] <= bounds[1]:
                low, high = bounds
                raise ValueError(
                    f"{key}: expected two rising numbers above {floor}, got {low} and {high}"
                )
        return self


class ViewConfig(Config):
    """Sizes at which an image is tested, in pixels."""

    resize: PositiveInt = 256
    """Length of the shorter side before the centre is cut out."""
    crop: PositiveInt = 224
    """Side of the square that is cut out."""
    scales: PositiveInts = (224, 256, 384, 480, 640)
    """Fully convolutional testing: lengths of the shorter side."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.resize < self.crop:
            raise ValueError(f"resize: expected at least crop ({self.crop}), got {self.resize}")
        return self
