"""What the network sees of an image: the random views of training, the fixed ones of testing.

H, W height and width; images are (H, W, 3) uint8 RGB throughout.
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

from backbones.classification.config import AugmentConfig, EvaluationConfig
from backbones.config import WindowConfig
from backbones.images import REDUCTIONS, decode, picture_size, resize_pixels

# Principal axes of the RGB values of ImageNet's training images on the scale 0..1: variances, and
# the axes as columns. AlexNet (2012), section 4.1; figures of facebookarchive/fb.resnet.torch.
PCA_VARIANCES = np.array([0.2175, 0.0188, 0.0045])
PCA_AXES = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
AREA_TRIES = 10  # as torchvision's RandomResizedCrop
STRENGTHS = 31  # as torchvision's TrivialAugmentWide: 0, 1/30, ... 1


@dataclass(frozen=True)
class Window:
    """A rectangle inside an image, in the pixels of its full size."""

    top: float
    left: float
    height: float
    width: float


def short_side_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return (height, width) of an image of `size` whose shorter side becomes `short_side`."""
    height, width = (round(side * short_side / min(size)) for side in size)
    return height, width


def draw_resized_window(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    short_sides: tuple[int, int],
    crop: int,
) -> Window:
    """Draw the paper's view: a `crop` square anywhere in the image resized at random.

    Args:
        size: (height, width) of the image as it is; the window is in its pixels.
        rng: source of chance.
        short_sides: least and greatest length of the shorter side, both at least `crop`.
        crop: side of the square.
    """
    resized = short_side_size(size, int(rng.integers(short_sides[0], short_sides[1] + 1)))
    top, left = (int(rng.integers(side - crop + 1)) for side in resized)
    down, across = size[0] / resized[0], size[1] / resized[1]
    return Window(top * down, left * across, crop * down, crop * across)


def draw_area_window(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Window:
    """Draw a rectangle of random area and shape (GoogLeNet, 2014; torchvision's RandomResizedCrop).

    The share of the area is uniform and the logarithm of width over height is. Where ten draws do
    not fit, the largest rectangle of allowed shape in the centre is taken.

    Args:
        size: (height, width) of the image; the window has whole pixels of it.
        rng: source of chance.
        area: range of the share of the image's area.
        aspect: range of width over height.
    """
    height, width = size
    for _ in range(AREA_TRIES):
        target = height * width * rng.uniform(*area)
        shape = exp(rng.uniform(log(aspect[0]), log(aspect[1])))
        tall, wide = round(sqrt(target / shape)), round(sqrt(target * shape))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            return Window(int(top), int(left), tall, wide)
    shape = min(max(width / height, aspect[0]), aspect[1])
    tall = max(1, min(height, round(width / shape)))
    wide = max(1, min(width, round(height * shape)))
    return Window((height - tall) // 2, (width - wide) // 2, tall, wide)


def draw_window(size: tuple[int, int], rng: np.random.Generator, config: WindowConfig) -> Window:
    """Draw what is cut out of an image of `size` (height, width), as the config says."""
    if config.short_sides is not None:
        return draw_resized_window(size, rng, short_sides=config.short_sides, crop=config.crop)
    return draw_area_window(size, rng, area=config.area, aspect=config.aspect)


def largest_reduction(window: Window, side: int) -> int:
    """Return by how much a JPEG may be decoded smaller, so that the window keeps `side` pixels."""
    shortest = min(window.height, window.width)
    return max(factor for factor in REDUCTIONS if factor == 1 or shortest >= factor * side)


def cut(pixels: np.ndarray, window: Window, side: int, *, reduction: int = 1) -> np.ndarray:
    """Return the window as a `side` x `side` image.

    Args:
        pixels: the image, decoded smaller by `reduction`.
        window: what to cut out; its edges go to the nearest of these pixels.
        side: length of the result's sides.
        reduction: 1 for an image of full size.
    """
    height, width = pixels.shape[:2]
    tall = min(height, max(1, round(window.height / reduction)))
    wide = min(width, max(1, round(window.width / reduction)))
    top = min(height - tall, round(window.top / reduction))
    left = min(width - wide, round(window.left / reduction))
    return resize_pixels(pixels[top : top + tall, left : left + wide], (side, side))


def shift_colors(pixels: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the image with `shift` (3,) float added to R, G and B, rounded and clipped."""
    table = np.rint(np.arange(256)[:, None] + shift).clip(0, 255).astype(np.uint8)
    shifted: np.ndarray = cv2.LUT(pixels, table[:, None])
    return shifted


def draw_color_shift(rng: np.random.Generator, std: float) -> np.ndarray:
    """Draw (3,) float to be added to R, G and B on the scale 0..255 (AlexNet, section 4.1).

    Along each principal axis of ImageNet's colours: its variance times a normal draw of deviation
    `std`.
    """
    shift: np.ndarray = 255 * PCA_AXES @ (PCA_VARIANCES * rng.normal(0, std, size=3))
    return shift


class TrainingView:
    """Cuts a random square out of an image and changes it; the same for one seed in any process.

    Args:
        config: sizes, chances and strengths.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self._config = config
        self._auto: AutoAugment | None = None
        if config.auto != "none":
            self._auto = AutoAugment(
                reach_of(config.auto, side=config.crop),
                num_ops=1 if config.auto == "trivial" else config.auto_ops,
                strength=None if config.auto == "trivial" else config.auto_magnitude,
            )

    def __call__(self, data: bytes, path: Path, *, seed: int) -> np.ndarray:
        """Return (crop, crop, 3) uint8 RGB.

        Args:
            data: a whole image file.
            path: its name, for errors.
            seed: 0 or more; the only source of chance.

        Raises:
            BadPictureError: it is no image, or its end is missing.
        """
        rng = np.random.default_rng(seed)
        crop = self._config.crop
        size, reduction = picture_size(data), 1
        if size is None:
            pixels = decode(data, path)
            window = draw_window((pixels.shape[0], pixels.shape[1]), rng, self._config)
        else:
            # The window is known before decoding, and so how small the image may be decoded.
            window = draw_window(size, rng, self._config)
            reduction = largest_reduction(window, crop)
            pixels = decode(data, path, reduction=reduction)
        return self.change(cut(pixels, window, crop, reduction=reduction), rng)

    def change(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the square (crop, crop, 3) mirrored, augmented and shifted in colour."""
        if rng.random() < self._config.flip_prob:
            pixels = cv2.flip(pixels, 1)
        if self._auto is not None:
            pixels = self._auto(pixels, rng)
        if self._config.pca_std > 0:
            pixels = shift_colors(pixels, draw_color_shift(rng, self._config.pca_std))
        return pixels


class EvaluationView:
    """Resizes an image and cuts its centre out where that is all that is tested.

    For ten crops and for several scales the whole image is kept, at the size of the largest: the
    device cuts and shrinks it. Images are decoded in full, as for the figures in the literature.

    Args:
        config: view and sizes.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        multi_scale = config.view == "multi_scale"
        self._short_side = max(config.scales) if multi_scale else config.resize
        self._crop = config.crop
        self.one_shape = config.view == "center"
        """All images come out in one shape."""

    def __call__(self, data: bytes, path: Path, *, seed: int) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB of `shape_of` the image's size.

        Args:
            data: a whole image file.
            path: its name, for errors.
            seed: of no effect: nothing is random.

        Raises:
            BadPictureError: it is no image, or its end is missing.
        """
        pixels = decode(data, path)
        height, width = short_side_size((pixels.shape[0], pixels.shape[1]), self._short_side)
        pixels = resize_pixels(pixels, (height, width))
        if self.one_shape:
            top, left = (height - self._crop) // 2, (width - self._crop) // 2
            pixels = pixels[top : top + self._crop, left : left + self._crop]
        return pixels

    def shape_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) in which an image of `size` comes out."""
        if self.one_shape:
            return self._crop, self._crop
        return short_side_size(size, self._short_side)


@dataclass(frozen=True)
class Reach:
    """How far each kind of operation goes at strength 1.

    shear: tangent of the angle. translate: pixels. rotate: degrees. color: a factor's distance from
    1. bits: bits of a colour that are dropped. solarize: from 255 down, where inversion starts, as
    a share of 255.
    """

    shear: float
    translate: float
    rotate: float
    color: float
    bits: float
    solarize: float = 1.0
    nothing: float = 0.0


def reach_of(kind: str, *, side: int) -> Reach:
    """Return torchvision's ranges for "trivial" (TrivialAugmentWide, 2021) or "randaugment" (2019).

    side: of the square image, in pixels: RandAugment's translations grow with it.
    """
    if kind == "trivial":
        return Reach(shear=0.99, translate=32, rotate=135, color=0.99, bits=6)
    return Reach(shear=0.3, translate=150 / 331 * side, rotate=30, color=0.9, bits=4)


class AutoAugment:
    """Applies drawn operations of `OPERATIONS`, each as likely as any other.

    Args:
        reach: the operations' ranges.
        num_ops: how many are applied, one after the other.
        strength: of each, in [0, 1]; None draws it, uniformly from 31 values.
    """

    def __init__(self, reach: Reach, *, num_ops: int, strength: float | None) -> None:
        self._reach = reach
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
            pixels = operate(pixels, name, self._reach, strength=sign * strength)
        return pixels


def operate(pixels: np.ndarray, name: str, reach: Reach, *, strength: float) -> np.ndarray:
    """Return the image after operation `name`.

    strength: in [-1, 1]; 0 changes little or nothing. Its sign is the direction of a shift, turn or
    colour change, and of no effect on other operations.
    """
    kind, _ = OPERATIONS[name]
    changed: np.ndarray = _transform(name, strength * getattr(reach, kind))(image=pixels)["image"]
    return changed


@cache  # making one takes longer than using it, and there are at most 2 x 31 of each name
def _transform(name: str, value: float) -> A.BasicTransform:
    """Return operation `name` of exactly this value: always applied, with nothing left to draw."""
    return OPERATIONS[name][1](value)


def _affine(**changes: Any) -> A.Affine:
    """About the centre, bilinear, black where nothing comes from."""
    return A.Affine(**changes, p=1.0)


def _shear(**degrees_by_axis: float) -> A.Affine:
    angles = {"x": 0.0, "y": 0.0} | degrees_by_axis
    return _affine(shear={axis: (angle, angle) for axis, angle in angles.items()})


def _translate(**pixels_by_axis: int) -> A.Affine:
    shifts = {"x": 0, "y": 0} | pixels_by_axis
    return _affine(translate_px={axis: (shift, shift) for axis, shift in shifts.items()})


def _color(name: str, value: float) -> A.ColorJitter:
    one, changed = (1.0, 1.0), (1.0 + value, 1.0 + value)
    factors = dict.fromkeys(("brightness", "contrast", "saturation"), one) | {name: changed}
    return A.ColorJitter(**factors, hue=(0.0, 0.0), p=1.0)


def _sharpness(value: float) -> A.Lambda:
    """Away from (above 0) or towards Pillow's SMOOTH filter: A.Sharpen does the first alone."""
    smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    kernel = -value * smooth
    kernel[1, 1] += 1 + value

    def sharpen(pixels: np.ndarray, **_: Any) -> np.ndarray:
        sharpened: np.ndarray = cv2.filter2D(pixels, -1, kernel)
        return sharpened

    return A.Lambda(image=sharpen, p=1.0)


def _posterize(value: float) -> A.BasicTransform:
    dropped = round(abs(value))
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
"""Kind of strength (a field of `Reach`) and maker of each operation."""
