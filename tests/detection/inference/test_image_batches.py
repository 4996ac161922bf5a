"""Batches of images: order and shapes, with threads and without, and after an interruption."""

from collections.abc import Iterator

import numpy as np
import pytest

from detection.inference.image_batches import (
    BATCHES_AHEAD,
    BATCHES_WAITING,
    BYTES_AHEAD,
    ImageReader,
    ReadImage,
    ReadingOptions,
)
from detection.inference.image_inputs import ImageInput
from tests.detection.inference.networks import make_config

BATCH = 3
SIZES = [(64, 64), (64, 90), (90, 64), (20, 96), (96, 20)]
"""Of different padded shapes: in turn, more images wait than may before a batch is full."""


def make_images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [SIZES[number % 5] for number in range(count // 2)]
    sizes += [SIZES[number] for number in rng.integers(5, size=count - len(sizes))]
    return [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]


def indices(batches: Iterator[list[ReadImage]]) -> list[list[int]]:
    return [[image.index for image in batch] for batch in batches]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_change_neither_order_nor_content(threads: int) -> None:
    images: list[ImageInput] = [*make_images(30), "absent.jpg"]
    reader = ImageReader(make_config())

    def batches(threads: int) -> list[list[ReadImage]]:
        found = reader.batches(images, ReadingOptions(BATCH, threads, keep_pixels=True))
        return list(found)

    found, expected = batches(threads), batches(0)
    assert sorted(image.index for batch in found for image in batch) == [*range(len(images))]
    assert max(map(len, found)) == BATCH
    for batch, other in zip(found, expected, strict=True):
        samples = [image.sample for image in batch if image.sample is not None]
        assert len({reader._padded_sides(sample) for sample in samples}) <= 1
        for one, same in zip(batch, other, strict=True):
            assert (one.index, str(one.error)) == (same.index, str(same.error))
            if one.sample is not None and same.sample is not None:
                np.testing.assert_array_equal(one.sample.pixels, same.sample.pixels)
                assert one.pixels is images[one.index]
    (bad,) = [image for batch in found for image in batch if image.error]
    assert (bad.index, str(bad.error)) == (len(images) - 1, "absent.jpg: no such file")


@pytest.mark.parametrize("threads", [0, 2])
def test_after_any_batch_the_images_that_are_left_give_the_next_ones(threads: int) -> None:
    images = make_images(30)
    reader = ImageReader(make_config())
    batches = indices(reader.batches(images, ReadingOptions(BATCH)))
    assert [BATCH] * len(batches) != list(map(len, batches))  # batches that were not filled
    for done in range(len(batches)):
        finished = {index for batch in batches[:done] for index in batch}
        left = [index for index in range(len(images)) if index not in finished]
        again = reader.batches((images[index] for index in left), ReadingOptions(BATCH, threads))
        assert [[left[i] for i in batch] for batch in indices(again)] == batches[done:]


@pytest.mark.parametrize("threads", [0, 3])
def test_few_images_are_in_memory(threads: int) -> None:
    taken = given = most = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal taken
        for image in make_images(60):
            taken += 1
            yield image

    reader = ImageReader(make_config())
    for batch in reader.batches(counted(), ReadingOptions(BATCH, threads, keep_pixels=True)):
        most = max(most, taken - given)
        given += len(batch)
    ahead = BATCHES_AHEAD * BATCH + threads - 1 if threads else 0
    assert most == BATCHES_WAITING * BATCH + ahead
    assert given == taken == 60


def test_of_huge_images_few_are_read_ahead() -> None:
    taken = given = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(9):
            taken += 1
            yield huge

    huge = np.zeros((BYTES_AHEAD // 30_000 // 3 + 1, 30_000, 3), np.uint8)  # is never touched
    reader = ImageReader(make_config())
    for batch in reader.batches(
        counted(), ReadingOptions(BATCH, threads=3, only_read=lambda size: True)
    ):
        (image,) = batch
        assert (image.sample, image.pixels is huge) == (None, True)
        given += 1
        assert taken - given <= 2  # one of them is asked for
    assert given == 9
