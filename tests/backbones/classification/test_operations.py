"""Shortcuts of random operations give what albumentations' own transforms give."""

import albumentations as A
import numpy as np
import pytest

from backbones.classification.operations import OPERATIONS, operation_ranges
from tests.backbones.classification.tiny import operate


def images() -> list[np.ndarray]:
    """Noise, few values, one value and one pixel of another value, (32, 32, 3) each."""
    rng = np.random.default_rng(0)
    one = np.full((32, 32, 3), 200, np.uint8)
    two = one.copy()
    two[3, 4] = 7
    few = rng.integers(4, size=(32, 32, 3)) * 60
    return [rng.integers(256, size=(32, 32, 3)).astype(np.uint8), few.astype(np.uint8), one, two]


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_the_called_transforms(name: str) -> None:
    ranges = operation_ranges("trivial", side=32)
    kind, build = OPERATIONS[name]
    for strength in (-1.0, -0.5, 0.0, 0.3, 1.0):
        value = strength * getattr(ranges, kind)
        transform = A.Equalize(mode="pil", p=1.0) if name == "equalize" else build(value)
        for image in images():
            before = image.copy()
            changed = operate(image, name, ranges, strength=strength)
            np.testing.assert_array_equal(changed, transform(image=before)["image"])
            np.testing.assert_array_equal(image, before)
