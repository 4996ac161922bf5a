"""Image transforms for classification: random crops and augmentation, and test-time resizing.

H, W height and width; all images are (H, W, 3) uint8 RGB.
"""

from contextlib import suppress
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path

import cv2
import numpy as np

from backbones.bitmaps import BITMAP_SUFFIX, Bitmap, as_bitmap
from backbones.classification.config import AugmentConfig, EvaluationConfig
from backbones.classification.operations import (
    Operation,
    RandomOperations,
    apply_operation,
    operation_ranges,
)
from backbones.config import CropConfig
from backbones.images import REDUCTIONS, decode, image_size, read_file, resize_pixels
from engine.errors import UserError
from engine.paths import open_file

# Principal components of the RGB values of ImageNet's training images on the scale 0..1: variances,
# and axes as columns. AlexNet (2012), section 4.1; values from facebookarchive/fb.resnet.torch.
PCA_VARIANCES = np.array([0.2175, 0.0188, 0.0045])
PCA_AXES = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
AREA_TRIES = 10  # as torchvision's RandomResizedCrop


@dataclass(frozen=True)
class CropWindow:
    """A crop rectangle, in pixels of the full-size image."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class TrainingChoices:
    """The random choices for a training image.

    operations: applied to the crop after the flip. color_shift: (3,) float, added to R, G and B.
    """

    window: CropWindow
    flip: bool
    operations: tuple[Operation, ...]
    color_shift: np.ndarray | None


def size_for_short_side(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return the (height, width) after resizing the shorter side of `size` to `short_side`."""
    height, width = (round(side * short_side / min(size)) for side in size)
    return height, width


def sample_resized_crop(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    short_sides: tuple[int, int],
    crop: int,
) -> CropWindow:
    """Sample the paper's crop: a random `crop` square of the image resized to a random scale.

    Args:
        size: (height, width) of the original image; the window is in its pixels.
        rng: random generator.
        short_sides: smallest and largest length of the shorter side, both at least `crop`.
        crop: side of the square.
    """
    resized = size_for_short_side(size, int(rng.integers(short_sides[0], short_sides[1] + 1)))
    top, left = (int(rng.integers(side - crop + 1)) for side in resized)
    # from pixels of the resized image back to pixels of the original
    y_scale, x_scale = size[0] / resized[0], size[1] / resized[1]
    return CropWindow(top * y_scale, left * x_scale, crop * y_scale, crop * x_scale)


def sample_area_crop(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> CropWindow:
    """Sample a crop of random area and aspect (GoogLeNet, 2014; torchvision's RandomResizedCrop).

    The share of the area is uniform, and so is the logarithm of width / height. If ten samples do
    not fit into the image, the result is the largest central rectangle with an allowed aspect.

    Args:
        size: (height, width) of the image; the window has whole pixels of it.
        rng: random generator.
        area: range of the share of the image area.
        aspect: range of width / height.
    """
    height, width = size
    for _ in range(AREA_TRIES):
        target = height * width * _uniform(rng, *area)
        ratio = exp(_uniform(rng, log(aspect[0]), log(aspect[1])))
        # height * width is the target area, width / height the ratio
        crop_height, crop_width = round(sqrt(target / ratio)), round(sqrt(target * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return CropWindow(top, left, crop_height, crop_width)
    # the nearest allowed aspect; then one side of the rectangle is the image's
    ratio = min(max(width / height, aspect[0]), aspect[1])
    crop_height = max(1, min(height, round(width / ratio)))
    crop_width = max(1, min(width, round(height * ratio)))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return CropWindow(top, left, crop_height, crop_width)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return the number that `rng.uniform` returns, in a third of its time."""
    return low + (high - low) * rng.random()


def sample_crop_window(
    size: tuple[int, int], rng: np.random.Generator, config: CropConfig
) -> CropWindow:
    """Sample the crop of an image of `size` (height, width), as the config says."""
    if config.short_sides is not None:
        return sample_resized_crop(size, rng, short_sides=config.short_sides, crop=config.crop)
    return sample_area_crop(size, rng, area=config.area, aspect=config.aspect)


def largest_reduction(window: CropWindow, side: int) -> int:
    """Return the largest JPEG decoding reduction that leaves the window at least `side` pixels."""
    shortest = min(window.height, window.width)
    return max(factor for factor in REDUCTIONS if factor == 1 or shortest >= factor * side)


def whole_pixels(
    window: CropWindow, size: tuple[int, int], *, reduction: int = 1
) -> tuple[slice, slice]:
    """Return the rows and columns of the window in an image of `size`; see `crop_and_resize`."""
    height = min(size[0], max(1, round(window.height / reduction)))
    width = min(size[1], max(1, round(window.width / reduction)))
    top = min(size[0] - height, round(window.top / reduction))
    left = min(size[1] - width, round(window.left / reduction))
    return slice(top, top + height), slice(left, left + width)


def crop_and_resize(
    pixels: np.ndarray, window: CropWindow, side: int, *, reduction: int = 1
) -> np.ndarray:
    """Crop the window and resize it to `side` x `side`.

    Args:
        pixels: the image, decoded at 1 / `reduction` of its size.
        window: the crop, in full-size pixels; its edges are rounded to whole pixels of `pixels`.
        side: height and width of the result.
        reduction: 1 for a full-size image.
    """
    size = pixels.shape[0], pixels.shape[1]
    rows, columns = whole_pixels(window, size, reduction=reduction)
    return resize_pixels(pixels[rows, columns], (side, side))


def shift_colors(pixels: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the image with `shift` (3,) float added to R, G and B, rounded and clipped."""
    # (256, 3): a table of the new values of each colour, since a pixel has only 256 old ones
    table = np.rint(np.arange(256)[:, None] + shift).clip(0, 255).astype(np.uint8)
    shifted: np.ndarray = cv2.LUT(pixels, table[:, None])
    return shifted


def sample_color_shift(rng: np.random.Generator, std: float) -> np.ndarray:
    """Sample a colour shift (3,) for R, G and B on the scale 0..255 (AlexNet, section 4.1).

    Along each principal axis of ImageNet's colours, the shift is the axis's variance times a normal
    random number of standard deviation `std`.
    """
    shift: np.ndarray = 255 * PCA_AXES @ (PCA_VARIANCES * rng.normal(0, std, size=3))
    return shift


class TrainingTransform:
    """Random crop, flip and augmentation of a training image; deterministic for a given seed.

    Args:
        config: sizes, probabilities and strengths.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.side = config.crop
        """Height and width of the result."""
        self._config = config
        self._auto: RandomOperations | None = None
        if config.auto != "none":
            self._auto = RandomOperations(
                operation_ranges(config.auto, side=config.crop),
                num_ops=1 if config.auto == "trivial" else config.auto_ops,
                strength=None if config.auto == "trivial" else config.auto_magnitude,
            )

    def crop(self, data: bytes, path: Path, *, seed: int) -> tuple[np.ndarray, TrainingChoices]:
        """Return the random crop (crop, crop, 3) uint8 RGB, and the choices for it.

        Args:
            data: the bytes of an image file.
            path: of the file, for error messages.
            seed: 0 or more; all random choices depend only on it.

        Raises:
            BadImageError: the data are not an image, or its end is missing.
        """
        size, reduction = image_size(data), 1
        if size is None:
            pixels = decode(data, path)
            choices = self.sample((pixels.shape[0], pixels.shape[1]), seed=seed)
        else:
            # Sampling the window before decoding shows at how small a size the JPEG can be decoded.
            choices = self.sample(size, seed=seed)
            reduction = largest_reduction(choices.window, self.side)
            pixels = decode(data, path, reduction=reduction)
        return crop_and_resize(pixels, choices.window, self.side, reduction=reduction), choices

    def crop_file(self, path: Path, *, seed: int) -> tuple[np.ndarray, TrainingChoices]:
        """Return `crop` of a file; of an uncompressed copy, only the crop's rows are read.

        Raises:
            UserError: there is no such file, or it cannot be opened.
            BadImageError: as for `crop`.
        """
        if path.suffix == BITMAP_SUFFIX:
            with suppress(UserError), open_file(path) as file:  # read_file says what is wrong
                bitmap = as_bitmap(file)
                if bitmap is not None:
                    return self.crop_bitmap(bitmap, seed=seed)
        return self.crop(read_file(path), path, seed=seed)

    def crop_bitmap(self, bitmap: Bitmap, *, seed: int) -> tuple[np.ndarray, TrainingChoices]:
        """Return what `crop` returns for the whole file; reads only the crop's rows."""
        choices = self.sample(bitmap.size, seed=seed)
        stored = bitmap.read_bgr(*whole_pixels(choices.window, bitmap.size))
        resized = resize_pixels(stored, (self.side, self.side))
        return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB), choices

    def sample(self, size: tuple[int, int], *, seed: int) -> TrainingChoices:
        """Return all random choices for an image of `size` (height, width)."""
        config, rng = self._config, np.random.default_rng(seed)
        return TrainingChoices(
            window=sample_crop_window(size, rng, config),
            flip=rng.random() < config.flip_prob,
            operations=() if self._auto is None else self._auto.sample(rng),
            color_shift=sample_color_shift(rng, config.pca_std) if config.pca_std > 0 else None,
        )


def augment(pixels: np.ndarray, choices: TrainingChoices) -> np.ndarray:
    """Return the crop (crop, crop, 3) after flip, operations and colour shift."""
    if choices.flip:
        pixels = cv2.flip(pixels, 1)
    for operation in choices.operations:
        pixels = apply_operation(pixels, operation)
    if choices.color_shift is not None:
        pixels = shift_colors(pixels, choices.color_shift)
    return pixels


class EvaluationTransform:
    """Resize of a test image, and its centre crop if only that crop is tested.

    For ten crops and several scales it returns the whole image, at the largest scale; the device
    crops and shrinks it. Images are decoded at full size, as for published results.

    Args:
        config: view and sizes.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        multi_scale = config.view == "multi_scale"
        self._short_side = max(config.scales) if multi_scale else config.resize
        self._crop = config.crop
        self.has_one_shape = config.view == "center"
        """Whether all outputs have one shape."""

    def __call__(self, data: bytes, path: Path, *, seed: int) -> np.ndarray:
        """Return the image resized to `output_size` of its size, (H, W, 3) uint8 RGB.

        Args:
            data: the bytes of an image file.
            path: of the file, for error messages.
            seed: not used, because nothing is random.

        Raises:
            BadImageError: the data are not an image, or its end is missing.
        """
        return self.view(decode(data, path))

    def view(self, pixels: np.ndarray) -> np.ndarray:
        """Return an image (H, W, 3), resized and cropped."""
        height, width = size_for_short_side((pixels.shape[0], pixels.shape[1]), self._short_side)
        pixels = resize_pixels(pixels, (height, width))
        if self.has_one_shape:
            top, left = (height - self._crop) // 2, (width - self._crop) // 2
            pixels = pixels[top : top + self._crop, left : left + self._crop]
        return pixels

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the output (height, width) for an image of `size`."""
        if self.has_one_shape:
            return self._crop, self._crop
        return size_for_short_side(size, self._short_side)
