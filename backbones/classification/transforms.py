"""Image transforms for classification: random crops and augmentation, and test-time resizing.

H, W height and width; all images are (H, W, 3) uint8 RGB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import atan, degrees, exp, log, sqrt
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np

from backbones.bitmaps import Bitmap
from backbones.classification.config import AugmentConfig, EvaluationConfig
from backbones.config import CropConfig
from backbones.images import REDUCTIONS, decode, image_size, resize_pixels

# Principal components of the RGB values of ImageNet's training images on the scale 0..1: variances,
# and axes as columns. AlexNet (2012), section 4.1; values from facebookarchive/fb.resnet.torch.
PCA_VARIANCES = np.array([0.2175, 0.0188, 0.0045])
PCA_AXES = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
AREA_TRIES = 10  # as torchvision's RandomResizedCrop
STRENGTHS = 31  # as torchvision's TrivialAugmentWide: 0, 1/30, ... 1


@dataclass(frozen=True)
class CropWindow:
    """A crop rectangle, in pixels of the full-size image."""

    top: float
    left: float
    height: float
    width: float


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
        target = height * width * rng.uniform(*area)
        ratio = exp(rng.uniform(log(aspect[0]), log(aspect[1])))
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
        self._config = config
        self._auto: RandomOperations | None = None
        if config.auto != "none":
            self._auto = RandomOperations(
                operation_ranges(config.auto, side=config.crop),
                num_ops=1 if config.auto == "trivial" else config.auto_ops,
                strength=None if config.auto == "trivial" else config.auto_magnitude,
            )

    def __call__(self, data: bytes, path: Path, *, seed: int) -> np.ndarray:
        """Return the network input, (crop, crop, 3) uint8 RGB.

        Args:
            data: the bytes of an image file.
            path: of the file, for error messages.
            seed: 0 or more; all random choices depend only on it.

        Raises:
            BadImageError: the data are not an image, or its end is missing.
        """
        rng = np.random.default_rng(seed)
        crop = self._config.crop
        size, reduction = image_size(data), 1
        if size is None:
            pixels = decode(data, path)
            window = sample_crop_window((pixels.shape[0], pixels.shape[1]), rng, self._config)
        else:
            # Sampling the window before decoding shows at how small a size the JPEG can be decoded.
            window = sample_crop_window(size, rng, self._config)
            reduction = largest_reduction(window, crop)
            pixels = decode(data, path, reduction=reduction)
        return self.augment(crop_and_resize(pixels, window, crop, reduction=reduction), rng)

    def of_bitmap(self, bitmap: Bitmap, *, seed: int) -> np.ndarray:
        """Return what a call with the whole file returns; reads only the crop's rows."""
        rng = np.random.default_rng(seed)
        crop = self._config.crop
        window = sample_crop_window(bitmap.size, rng, self._config)
        pixels = bitmap.read(*whole_pixels(window, bitmap.size))
        return self.augment(resize_pixels(pixels, (crop, crop)), rng)

    def augment(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the crop (crop, crop, 3) after random flip, augmentation and colour shift."""
        if rng.random() < self._config.flip_prob:
            pixels = cv2.flip(pixels, 1)
        if self._auto is not None:
            pixels = self._auto(pixels, rng)
        if self._config.pca_std > 0:
            pixels = shift_colors(pixels, sample_color_shift(rng, self._config.pca_std))
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
        pixels = decode(data, path)
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


@dataclass(frozen=True)
class OperationRanges:
    """Range of each kind of operation: its value at strength 1.

    shear: tangent of the angle. translate: pixels. rotate: degrees. color: distance of the factor
    from 1. bits: number of dropped bits per colour. solarize: distance of the inversion threshold
    from 255, as a share of 255. nothing: for operations without a value.
    """

    shear: float
    translate: float
    rotate: float
    color: float
    bits: float
    solarize: float = 1.0
    nothing: float = 0.0


def operation_ranges(kind: str, *, side: int) -> OperationRanges:
    """Return torchvision's ranges for "trivial" (TrivialAugmentWide, 2021) or "randaugment" (2019).

    side: of the square image, in pixels; RandAugment's translations are proportional to it.
    """
    if kind == "trivial":
        return OperationRanges(shear=0.99, translate=32, rotate=135, color=0.99, bits=6)
    return OperationRanges(shear=0.3, translate=150 / 331 * side, rotate=30, color=0.9, bits=4)


class RandomOperations:
    """Applies random operations from `OPERATIONS`, all with equal probability.

    Args:
        ranges: values of the operations at strength 1.
        num_ops: number of operations, applied one after the other.
        strength: of each operation, in [0, 1]; None samples it uniformly from 31 values.
    """

    def __init__(self, ranges: OperationRanges, *, num_ops: int, strength: float | None) -> None:
        self._ranges = ranges
        self._num_ops = num_ops
        self._strength = strength

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the changed image, of the same shape."""
        for _ in range(self._num_ops):
            name = list(OPERATIONS)[rng.integers(len(OPERATIONS))]
            strength = self._strength
            if strength is None:
                strength = float(rng.integers(STRENGTHS)) / (STRENGTHS - 1)
            sign = 1 if rng.random() < 0.5 else -1
            pixels = apply_operation(pixels, name, self._ranges, strength=sign * strength)
        return pixels


def apply_operation(
    pixels: np.ndarray, name: str, ranges: OperationRanges, *, strength: float
) -> np.ndarray:
    """Return the image after operation `name`.

    strength: in [-1, 1]; 0 changes little or nothing. The sign is the direction of a shift, a
    rotation or a colour change; it has no effect on the other operations.
    """
    kind, _ = OPERATIONS[name]
    changed: np.ndarray = _transform(name, strength * getattr(ranges, kind))(image=pixels)["image"]
    return changed


@cache  # creating a transform takes longer than applying it; at most 2 x 31 values per name
def _transform(name: str, value: float) -> A.BasicTransform:
    """Return operation `name` with exactly this value: always applied, nothing random."""
    return OPERATIONS[name][1](value)


def _affine(**changes: Any) -> A.Affine:
    """Affine transform about the centre: bilinear, black outside the image."""
    return A.Affine(**changes, p=1.0)


def _shear(**degrees_by_axis: float) -> A.Affine:
    angles = {"x": 0.0, "y": 0.0} | degrees_by_axis
    return _affine(shear={axis: (angle, angle) for axis, angle in angles.items()})


def _translate(**pixels_by_axis: int) -> A.Affine:
    shifts = {"x": 0, "y": 0} | pixels_by_axis
    return _affine(translate_px={axis: (shift, shift) for axis, shift in shifts.items()})


def _color(name: str, value: float) -> A.ColorJitter:
    unchanged, changed = (1.0, 1.0), (1.0 + value, 1.0 + value)
    factors = dict.fromkeys(("brightness", "contrast", "saturation"), unchanged) | {name: changed}
    return A.ColorJitter(**factors, hue=(0.0, 0.0), p=1.0)


def _sharpness(value: float) -> A.Lambda:
    """Sharpen (value above 0) or smooth (below 0) with Pillow's SMOOTH filter.

    The result is image + value * (image - smoothed). A.Sharpen cannot smooth.
    """
    smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    kernel = -value * smooth
    kernel[1, 1] += 1 + value  # the image itself: a kernel of 1 at the centre

    def sharpen(pixels: np.ndarray, **_: Any) -> np.ndarray:
        sharpened: np.ndarray = cv2.filter2D(pixels, -1, kernel)
        return sharpened

    return A.Lambda(image=sharpen, p=1.0)


def _posterize(value: float) -> A.BasicTransform:
    dropped = round(abs(value))  # low bits set to 0
    return A.Posterize(num_bits=8 - dropped, p=1.0) if dropped else A.NoOp(p=1.0)


def _solarize(value: float) -> A.Solarize:
    return A.Solarize(threshold_range=(1 - abs(value), 1 - abs(value)), p=1.0)


OPERATIONS: dict[str, tuple[str, Callable[[float], A.BasicTransform]]] = {
    "identity": ("nothing", lambda _: A.NoOp(p=1.0)),
    "shear_x": ("shear", lambda value: _shear(x=degrees(atan(value)))),
    "shear_y": ("shear", lambda value: _shear(y=degrees(atan(value)))),
    "translate_x": ("translate", lambda value: _translate(x=int(value))),
    "translate_y": ("translate", lambda value: _translate(y=int(value))),
    "rotate": ("rotate", lambda value: _affine(rotate=(value, value))),
    "brightness": ("color", lambda value: _color("brightness", value)),
    "saturation": ("color", lambda value: _color("saturation", value)),
    "contrast": ("color", lambda value: _color("contrast", value)),
    "sharpness": ("color", _sharpness),
    "posterize": ("bits", _posterize),
    "solarize": ("solarize", _solarize),
    "autocontrast": ("nothing", lambda _: A.AutoContrast(method="pil", p=1.0)),
    "equalize": ("nothing", lambda _: A.Equalize(mode="pil", p=1.0)),
}
"""For each operation, the field of `OperationRanges` that scales it, and its constructor."""
