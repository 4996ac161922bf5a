import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.images import resize_pixels
from detection.export.resizing import count_taps, resize, sides_of

SIZES = {
    "grows": ((60, 80), (64, 85)),
    "grows much": ((33, 77), (75, 176)),
    "tiny": ((5, 7), (31, 43)),
    "one row": ((1, 9), (4, 36)),
    "the same": ((30, 40), (30, 40)),
    "half": ((60, 80), (30, 40)),
    "half of two columns": ((8, 2), (4, 1)),
    "shrinks": ((60, 80), (40, 53)),
    "shrinks by a pixel": ((61, 90), (60, 89)),
    "a third": ((90, 120), (30, 40)),
    "shrinks much": ((426, 640), (64, 96)),
}


def resized(pixels: np.ndarray, size: tuple[int, int], rows: Tensor, columns: Tensor) -> np.ndarray:
    images = torch.from_numpy(pixels)[None]
    height, width = (torch.tensor(side) for side in size)
    taps = count_taps(sides_of(images), (height, width))
    found = resize(images, (height, width), rows, columns, taps)
    array: np.ndarray = found[0].permute(1, 2, 0).numpy()
    return array


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "new_size"), SIZES.values(), ids=SIZES)
def test_is_opencvs_to_the_last_bit(size: tuple[int, int], new_size: tuple[int, int]) -> None:
    pixels = noise(size)
    rows, columns = (torch.arange(side) for side in new_size)
    found = resized(pixels, new_size, rows, columns)
    np.testing.assert_array_equal(found, resize_pixels(pixels, new_size))


def test_is_nearly_opencvs_where_images_shrink_very_much() -> None:
    pixels = noise((1200, 900))
    found = resized(pixels, (60, 45), torch.arange(60), torch.arange(45))
    difference = np.abs(found - resize_pixels(pixels, (60, 45)))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 10


def test_returns_a_window_and_repeats_the_last_row_and_column() -> None:
    pixels = noise((60, 80))
    found = resized(pixels, (30, 40), torch.arange(20, 34), torch.arange(3, 45))
    expected = resize_pixels(pixels, (30, 40))[20:, 3:]
    np.testing.assert_array_equal(found[:10, :37], expected)
    np.testing.assert_array_equal(found[10:, :37], np.repeat(expected[-1:], 4, axis=0))
    np.testing.assert_array_equal(found[:10, 37:], np.repeat(expected[:, -1:], 5, axis=1))
