"""Resizing of crops on a device against OpenCV's on the CPU."""

import numpy as np
import pytest
import torch

from backbones.device_resize import resize_weights, resized_crops
from backbones.images import resize_pixels

SIDE = 32
SIZES = [
    *((90, 120), (60, 60), (64, 64), (32, 32), (33, 64), (64, 32)),
    *((20, 25), (1, 1), (31, 33), (20, 60), (60, 20), (32, 20), (90, 3), (1, 100)),
]


def noise(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(256, size=(height, width, 3)).astype(np.uint8)


def on_device(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resized_crops_equal_opencvs(size: tuple[int, int]) -> None:
    image = noise(100, 130)
    height, width = size
    window = slice(7, 7 + height), slice(5, 5 + width)
    (resized,) = resized_crops([on_device(image)], [window], SIDE)
    expected = resize_pixels(image[window], (SIDE, SIDE))
    difference = np.abs(resized.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 1
    # OpenCV rounds linear weights to 11 bits; means over an area differ at ties alone
    grows = height < SIDE or width < SIDE
    assert (difference > 0).mean() < (0.15 if grows else 0.01)


def test_a_batch_is_resized_as_its_images_are() -> None:
    images = [on_device(noise(*size)) for size in SIZES * 4]  # more than are weighted at once
    windows = [(slice(0, image.shape[1]), slice(0, image.shape[2])) for image in images]
    together = resized_crops(images, windows, SIDE)
    assert together.is_contiguous(memory_format=torch.channels_last)
    for image, window, resized in zip(images, windows, together, strict=True):
        torch.testing.assert_close(resized_crops([image], [window], SIDE)[0], resized)


def test_weights_sum_to_one_and_are_zero_beyond_the_source() -> None:
    for weights, axis in zip(
        resize_weights(SIZES, SIDE, device=torch.device("cpu")), (0, 1), strict=True
    ):
        torch.testing.assert_close(weights.sum(2), torch.ones(len(SIZES), SIDE))
        for weight, size in zip(weights, SIZES, strict=True):
            assert not weight[:, size[axis] :].any()
