import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.images import resize_pixels
from detection.export.resizing import count_taps, number, resize

GROWING = [((60, 80), (64, 85)), ((33, 77), (75, 176)), ((5, 7), (31, 43)), ((1, 9), (4, 36))]
SHRINKING = [
    ((60, 80), (40, 53)),
    ((61, 90), (60, 89)),
    ((300, 200), (100, 67)),
    ((90, 120), (30, 40)),
    ((211, 97), (13, 6)),
]
HALVES = [((60, 80), (30, 40)), ((8, 2), (4, 1))]


def resized(pixels: np.ndarray, size: tuple[int, int], rows: Tensor, columns: Tensor) -> np.ndarray:
    images = torch.from_numpy(pixels)[None]
    height, width = (torch.tensor(side) for side in size)
    taps = number(count_taps(images, (height, width)))
    found = resize(images, (height, width), rows, columns, taps)
    array: np.ndarray = found[0].permute(1, 2, 0).numpy()
    return array


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "new_size"), [*GROWING, *HALVES, ((30, 40), (30, 40))])
def test_is_opencvs_to_the_last_bit_where_images_grow_or_halve(
    size: tuple[int, int], new_size: tuple[int, int]
) -> None:
    pixels = noise(size)
    rows, columns = (torch.arange(side) for side in new_size)
    found = resized(pixels, new_size, rows, columns)
    np.testing.assert_array_equal(found, resize_pixels(pixels, new_size))


@pytest.mark.parametrize(("size", "new_size"), SHRINKING)
def test_is_opencvs_up_to_rounding_where_images_shrink(
    size: tuple[int, int], new_size: tuple[int, int]
) -> None:
    pixels = noise(size)
    rows, columns = (torch.arange(side) for side in new_size)
    found = resized(pixels, new_size, rows, columns)
    difference = np.abs(found - resize_pixels(pixels, new_size))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= max(1, difference.size * 1e-4)


def test_returns_a_window_and_repeats_the_last_row_and_column() -> None:
    pixels = noise((60, 80))
    found = resized(pixels, (30, 40), torch.arange(20, 34), torch.arange(3, 45))
    expected = resize_pixels(pixels, (30, 40))[20:, 3:]
    np.testing.assert_array_equal(found[:10, :37], expected)
    np.testing.assert_array_equal(found[10:, :37], np.repeat(expected[-1:], 4, axis=0))
    np.testing.assert_array_equal(found[:10, 37:], np.repeat(expected[:, -1:], 5, axis=1))
