"""The parts of a config that the tasks on a residual backbone share."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from engine.schema import Config


class DemoConfig(Config):
    """Pictures to be drawn on first use: scenes for a detector, or their objects cut out."""

    root: str = "data/demo"
    """Folder that receives `train/` and `val/`."""
    num_train: PositiveInt = 240
    """Training pictures."""
    num_val: PositiveInt = 60
    """Validation pictures."""
    seed: NonNegativeInt = 0
    """Seed of the scenes."""


class NetworkConfig(Config):
    """A residual network: its weights, norm and pixels. Who uses it adds the depths it allows."""

    weights: str | None = None
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
