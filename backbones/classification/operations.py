"""Operations that change images at random: TrivialAugment (2021) and RandAugment (2019).

H, W height and width; all images are (H, W, 3) uint8 RGB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import atan, degrees
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np

STRENGTHS = 31  # as torchvision's TrivialAugmentWide: 0, 1/30, ... 1


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


class Operation(NamedTuple):
    """An operation of `OPERATIONS` and its value, in the unit of its field of `OperationRanges`."""

    name: str
    value: float


class RandomOperations:
    """Samples operations from `OPERATIONS`, all with equal probability.

    Args:
        ranges: values of the operations at strength 1.
        num_ops: number of operations, applied one after the other.
        strength: of each operation, in [0, 1]; None samples it uniformly from 31 values.
    """

    def __init__(self, ranges: OperationRanges, *, num_ops: int, strength: float | None) -> None:
        self._ranges = ranges
        self._num_ops = num_ops
        self._strength = strength

    def sample(self, rng: np.random.Generator) -> tuple[Operation, ...]:
        """Return the operations of an image, in their order."""
        chosen = []
        for _ in range(self._num_ops):
            name = list(OPERATIONS)[rng.integers(len(OPERATIONS))]
            strength = self._strength
            if strength is None:
                strength = float(rng.integers(STRENGTHS)) / (STRENGTHS - 1)
            sign = 1 if rng.random() < 0.5 else -1
            chosen.append(Operation(name, operation_value(name, self._ranges, sign * strength)))
        return tuple(chosen)


def operation_value(name: str, ranges: OperationRanges, strength: float) -> float:
    """Return the value of operation `name`.

    strength: in [-1, 1]; 0 changes little or nothing. The sign is the direction of a shift, a
    rotation or a colour change; it has no effect on the other operations.
    """
    return strength * float(getattr(ranges, OPERATIONS[name][0]))


def apply_operation(pixels: np.ndarray, operation: Operation) -> np.ndarray:
    """Return the changed image, of the same shape."""
    apply = _operation(operation.name, operation.value, pixels.shape)
    changed: np.ndarray = apply(pixels)
    return changed


@cache  # creating a transform takes longer than applying it; at most 2 x 31 values per name
def _operation(name: str, value: float, shape: tuple[int, ...]) -> Callable[..., np.ndarray]:
    """Return operation `name` with exactly this value, for images of one shape; nothing is random.

    Calling the transform itself would draw and check its parameters anew for each image, which
    takes as long as many of the operations.
    """
    transform = OPERATIONS[name][1](value)
    if isinstance(transform, A.Affine):  # its method compares the matrix with the identity anew
        matrix = _matrix(transform, shape)
        is_identity = np.array_equal(matrix, np.eye(2, 3))
        return A.NoOp(p=1.0).apply if is_identity else _warp(matrix, shape)
    apply: Callable[..., np.ndarray] = partial(transform.apply, **_parameters(transform, shape))
    return apply


@cache
def affine_matrix(name: str, value: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return the (2, 3) float64 matrix of an affine operation, for images of one shape.

    It takes the (x, y, 1) of a pixel's centre, (0, 0, 1) for the first pixel, to the place in the
    result. A matrix close to the identity is returned as exactly the identity. The array is
    cached: do not change it.
    """
    return _matrix(OPERATIONS[name][1](value), shape)


@cache
def color_table(name: str, value: float) -> np.ndarray:
    """Return the (256,) uint8 table of an operation that changes each colour value by itself.

    name: brightness, posterize or solarize. The array is cached: do not change it.
    """
    ramp = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    table: np.ndarray = _operation(name, value, ramp.shape)(ramp)[:, 0, 0]
    return table


def sharpness_kernel(value: float) -> np.ndarray:
    """Return the (3, 3) float64 filter: image + value * (image - smoothed), with Pillow's SMOOTH.

    value: above 0 sharpens, below 0 smooths.
    """
    smooth = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    kernel = -value * smooth
    kernel[1, 1] += 1 + value  # the image itself: a kernel of 1 at the centre
    return kernel


def _parameters(transform: A.BasicTransform, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the parameters of a transform whose ranges are single values."""
    parameters: dict[str, Any] = transform.get_params() | {"shape": shape}
    # no operation looks at the pixels for its parameters
    image = {"image": np.zeros(shape, np.uint8)}
    parameters |= transform.get_params_dependent_on_data(parameters, image)
    return parameters


def _matrix(transform: A.Affine, shape: tuple[int, ...]) -> np.ndarray:
    """Return the (2, 3) matrix; exactly the identity if it is close to it."""
    matrix: np.ndarray = _parameters(transform, shape)["matrix"]
    return np.eye(2, 3) if np.allclose(matrix, np.eye(3)) else matrix[:2]


def _warp(matrix: np.ndarray, shape: tuple[int, ...]) -> Callable[..., np.ndarray]:
    """Return an affine transform for images of one shape: bilinear, black outside the image."""
    return partial(cv2.warpAffine, M=matrix, dsize=shape[1::-1])


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
    """Sharpen or smooth with `sharpness_kernel`. A.Sharpen cannot smooth."""
    kernel = sharpness_kernel(value)

    def sharpen(pixels: np.ndarray, **_: Any) -> np.ndarray:
        sharpened: np.ndarray = cv2.filter2D(pixels, -1, kernel)
        return sharpened

    return A.Lambda(image=sharpen, p=1.0)


def _posterize(value: float) -> A.BasicTransform:
    dropped = round(abs(value))  # low bits set to 0
    return A.Posterize(num_bits=8 - dropped, p=1.0) if dropped else A.NoOp(p=1.0)


def _solarize(value: float) -> A.Solarize:
    return A.Solarize(threshold_range=(1 - abs(value), 1 - abs(value)), p=1.0)


def _equalize(pixels: np.ndarray, **_: Any) -> np.ndarray:
    """Equalize each channel's histogram: A.Equalize(mode="pil") in two thirds of its time."""
    histograms = [cv2.calcHist([pixels], [c], None, [256], (0, 256)).ravel() for c in range(3)]
    counts = np.stack(histograms, axis=1).astype(np.int64)  # (256, 3)
    brightest = 255 - (counts[::-1] > 0).argmax(axis=0)
    step = (counts.sum(axis=0) - counts[brightest, np.arange(3)]) // 255
    table = (counts.cumsum(axis=0) + step // 2) // np.maximum(step, 1)
    # step 0: a channel of nearly one value stays as it is
    table = np.where(step > 0, table.clip(max=255), np.arange(256)[:, None])
    equalized: np.ndarray = cv2.LUT(pixels, table.astype(np.uint8)[:, None])
    return equalized


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
    "equalize": ("nothing", lambda _: A.Lambda(image=_equalize, p=1.0)),
}
"""For each operation, the field of `OperationRanges` that scales it, and its constructor."""
