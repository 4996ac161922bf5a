"""Batched operations give what the CPU's give, image by image."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.classification.device_operations import _BATCHED, apply_operations
from backbones.classification.operations import (
    OPERATIONS,
    STRENGTHS,
    Operation,
    operation_ranges,
    operation_value,
)
from tests.backbones.classification.tiny import operate

# Both sums are rounded differently on processors without fused multiply-add.
ROUNDED = {"saturation": (1, 0.002), "sharpness": (1, 0.002)}
# OpenCV 4 rounds both coordinates to 1/32 pixel, so to within 1/64 of the 255 values between
# neighbours, and the result to 1.
WARPED = (1, 0.005) if int(cv2.__version__.split(".")[0]) >= 5 else (9, 0.4)
TOLERANCES = ROUNDED | dict.fromkeys(("shear_x", "shear_y", "rotate"), WARPED)
"""Largest and mean difference from the CPU's results; all other operations are exact"""


def images(height: int, width: int) -> list[np.ndarray]:
    """Return images (height, width, 3): noise, smooth, with few values, dark, bright."""
    rng = np.random.default_rng(0)
    size = (height, width, 3)
    noise = rng.integers(256, size=size).astype(np.uint8)
    blurred = cv2.GaussianBlur(noise, (0, 0), 4).astype(float)
    smooth = np.interp(blurred, (blurred.min(), blurred.max() + 1), (0, 255)).astype(np.uint8)
    one = np.full(size, 200, np.uint8)
    one[..., 1:] = 0, 255
    two = one.copy()
    two[-1, 0] = 7
    few = (rng.integers(4, size=size) * 60).astype(np.uint8)
    dark, bright = noise // 4, 255 - noise // 4
    white = np.where(noise < 60, 255, 254).astype(np.uint8)
    return [noise, smooth, one, two, few, dark, bright, white]


def to_batch(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def on_both(name: str, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return all images with all values of an operation: on the device's way, and the CPU's."""
    given, operations, expected = [], [], []
    for kind in ("trivial", "randaugment"):
        ranges = operation_ranges(kind, side=height)
        for step in range(1 - STRENGTHS, STRENGTHS):
            strength = step / (STRENGTHS - 1)
            for image in images(height, width):
                given.append(image)
                operations.append(Operation(name, operation_value(name, ranges, strength)))
                expected.append(operate(image, name, ranges, strength=strength))
    return apply_operations(to_batch(given), operations), to_batch(expected)


def mixed() -> tuple[Tensor, list[Operation]]:
    """Return a batch with each operation twice, with different images and values."""
    names = [*OPERATIONS, *reversed(OPERATIONS)]
    ranges = operation_ranges("trivial", side=24)
    operations = [
        Operation(name, operation_value(name, ranges, 0.3 + 0.02 * place))
        for place, name in enumerate(names)
    ]
    return to_batch((images(24, 20) * len(names))[: len(names)]), operations


def test_every_operation_but_the_identity_is_batched() -> None:
    assert ["identity", *_BATCHED] == list(OPERATIONS)


@pytest.mark.parametrize("size", [(16, 16), (12, 33)], ids=["square", "wide"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_the_cpus(name: str, size: tuple[int, int]) -> None:
    found, expected = on_both(name, *size)
    largest, mean = TOLERANCES.get(name, (0, 0.0))
    torch.testing.assert_close(found.int(), expected.int(), rtol=0, atol=largest)
    assert (found.double() - expected).abs().mean().item() <= mean


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 1)], ids=["one-pixel", "one-column"])
def test_tiny_images_equal_the_cpus(name: str, size: tuple[int, int]) -> None:
    found, expected = on_both(name, *size)
    largest, _ = TOLERANCES.get(name, (0, 0.0))
    torch.testing.assert_close(found.int(), expected.int(), rtol=0, atol=largest)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_factor_of_0_equals_the_cpus(name: str) -> None:
    given = images(16, 16)
    ranges = operation_ranges("trivial", side=16)
    expected = [operate(image, name, ranges, strength=-1 / ranges.color) for image in given]
    found = apply_operations(to_batch(given), [Operation(name, -1.0)] * len(given))
    torch.testing.assert_close(found, to_batch(expected), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "dim", "shift"),
    [("translate_x", 3, 7), ("translate_x", 3, -20), ("translate_y", 2, 7), ("translate_y", 2, 90)],
)
def test_translations_move_whole_pixels(name: str, dim: int, shift: int) -> None:
    pixels = to_batch(images(24, 20))
    count = min(abs(shift), pixels.shape[dim])
    expected = torch.zeros_like(pixels)
    size = pixels.shape[dim] - count
    target, source = (count, 0) if shift > 0 else (0, count)
    expected.narrow(dim, target, size).copy_(pixels.narrow(dim, source, size))
    found = apply_operations(pixels, [Operation(name, float(shift))] * len(pixels))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_rotation_by_90_degrees_moves_whole_pixels() -> None:
    pixels = to_batch(images(24, 24))
    found = apply_operations(pixels, [Operation("rotate", 90.0)] * len(pixels))
    torch.testing.assert_close(found, pixels.rot90(dims=(2, 3)), rtol=0, atol=0)


def test_a_mixed_batch_equals_the_images_one_by_one() -> None:
    pixels, operations = mixed()
    before = pixels.clone()
    found = apply_operations(pixels, operations)
    assert found.dtype == torch.uint8
    torch.testing.assert_close(pixels, before, rtol=0, atol=0)
    singly = [
        apply_operations(pixels[[place]], [operation]) for place, operation in enumerate(operations)
    ]
    torch.testing.assert_close(found, torch.cat(singly), rtol=0, atol=0)


def test_results_share_no_memory_with_the_input() -> None:
    pixels = to_batch(images(4, 4))
    before = pixels.clone()
    apply_operations(pixels, [Operation("identity", 0.0)] * len(pixels)).zero_()
    torch.testing.assert_close(pixels, before, rtol=0, atol=0)


def test_images_may_be_views() -> None:
    pixels, operations = mixed()
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    found = apply_operations(channels_last, operations)
    torch.testing.assert_close(found, apply_operations(pixels, operations), rtol=0, atol=0)


def test_an_empty_batch_stays_empty() -> None:
    found = apply_operations(torch.empty(0, 3, 8, 6, dtype=torch.uint8), [])
    assert found.shape == (0, 3, 8, 6)
    assert found.dtype == torch.uint8


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (
            [Operation("rotate", 1.0), Operation("blur", 1.0)],
            r"expected operations of .*, got \['blur'\]",
        ),
        ([Operation("rotate", 1.0)], "expected 2 operations, one per image, got 1"),
        ([Operation("rotate", 1.0)] * 3, "expected 2 operations, one per image, got 3"),
    ],
    ids=["unknown", "too-few", "too-many"],
)
def test_bad_operations_are_errors(operations: list[Operation], message: str) -> None:
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        apply_operations(pixels, operations)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_and_the_host_does_not_wait() -> None:
    pixels, operations = mixed()
    on_gpu = pixels.cuda()
    apply_operations(on_gpu, operations)  # the first call loads the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = apply_operations(on_gpu, operations)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), apply_operations(pixels, operations), rtol=0, atol=0)
