"""Config schema of a detector's images, annotations and augmentation.

Lengths are in pixels of the resized image unless stated otherwise.
"""

from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from backbones.config import DemoConfig
from engine.schema import BadInputPolicy, Config, Fraction, PathText, PositiveInts


class SplitConfig(Config):
    """A folder of images and its annotations in COCO's JSON format."""

    images: PathText = ""
    """Folder to which the JSON's `file_name`s are relative. For LVIS's files, which have none, the
    folder that contains train2017/ and val2017/."""
    annotations: PathText = ""
    """COCO JSON file."""


class LargeScaleJitterConfig(Config):
    """Large-scale jitter: a random square of an image that was resized by a random scale.

    It is padded with grey where the image is smaller (Ghiasi et al. 2021).
    """

    size: PositiveInt = 1024
    """Side of the square; the network's input in training."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Range of the longer side of the resized image, relative to `size`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.scale
        if low > high:
            raise ValueError(f"scale: expected two rising numbers, got {low} and {high}")
        return self


class AugmentConfig(Config):
    """Augmentation of training images."""

    short_sides: PositiveInts = (640, 672, 704, 736, 768, 800)
    """Target lengths of the shorter side; one is drawn for each batch, or image."""
    short_side_per: Literal["batch", "image"] = "batch"
    """Whether the images of a batch share the length of their shorter side, so that little is
    padding, or each has its own."""
    max_side: PositiveInt = 1333
    """Cap on the longer side."""
    large_scale_jitter: LargeScaleJitterConfig | None = None
    """If set, training images are random squares of one size; `short_sides`, `short_side_per`,
    `max_side` and `data.aspect_groups` then have no effect."""
    copy_paste_prob: Fraction = 0.0
    """Probability that a random subset of a second training image's objects is pasted over an image
    (simple copy-paste, Ghiasi et al. 2021); needs `large_scale_jitter` and masks in the JSON."""
    flip_prob: Fraction = 0.5
    """Probability of a left-right flip."""
    vertical_flip_prob: Fraction = 0.0
    """Probability of an up-down flip (for microscope and satellite images, not street scenes)."""
    color_jitter: Fraction = 0.0
    """Strength of brightness, contrast and saturation changes; hue changes by a tenth of it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.copy_paste_prob > 0 and self.large_scale_jitter is None:
            raise ValueError("copy_paste_prob: expected large_scale_jitter to be set too, got null")
        return self


class DataConfig(Config):
    """Images, annotations and the policies for bad ones."""

    train: SplitConfig = SplitConfig()
    """Training images; the classes are read from this JSON."""
    val: SplitConfig = SplitConfig()
    """Validation images."""
    demo: DemoConfig | None = None
    """If set, and a split lies in `demo.root`, missing demo images are generated there."""
    cache: bool = True
    """Keep a cached copy next to a JSON file of 20 MB or more; it loads over ten times as fast."""
    keep_empty: bool = True
    """Train on images without objects."""
    repeat_thresh: Fraction | None = None
    """Repeat images of rare classes: an image with a class that fewer than this fraction of the
    training images contain occurs more than once in an epoch, sqrt(threshold / fraction) times on
    average (LVIS, Gupta et al. 2019, appendix B.2: 0.001). null: each image occurs once."""
    crowds: Literal["ignore", "drop"] = "ignore"
    """Crowd regions in training. ignore: what lies in one is neither foreground nor background.
    drop: as if they were not annotated, so it is background. Evaluation always keeps them."""
    on_bad_box: BadInputPolicy = "error"
    """An object with an empty box, a box with NaN or outside its image, or an impossible area, or,
    for segmentation and copy-paste, without a readable mask: stop, or drop the object and count
    it."""
    on_bad_image: BadInputPolicy = "error"
    """An image that is missing at the start, truncated, or not of its annotated size: stop, or skip
    the image and count it. An image that disappears later always stops the run."""
    augment: AugmentConfig = AugmentConfig()
    """Training-time augmentation."""
    eval_short_side: PositiveInt = 800
    """Shorter side at evaluation and prediction."""
    eval_max_side: PositiveInt = 1333
    """Cap on the longer side at evaluation and prediction."""
    aspect_groups: PositiveInt = 8
    """Maximum number of aspect-ratio groups; a training batch is of one group. 1: no grouping."""
    size_divisor: PositiveInt = 32
    """Batches are padded to multiples of this."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        jitter = self.augment.large_scale_jitter
        if jitter is not None and jitter.size % self.size_divisor:
            raise ValueError(
                "augment.large_scale_jitter.size: expected a multiple of size_divisor "
                f"({self.size_divisor}), got {jitter.size}"
            )
        return self
