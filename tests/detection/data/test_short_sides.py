"""`data.augment.short_side_per=image`: each training image samples its own shorter side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.dataset import BatchShape, CocoDetection
from engine.loader import SampleKey, split_batches

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]
SHORT_SIDES, MAX_SIDE = (40, 52, 60), 90
SIZES = ((40, 60), (50, 30), (30, 30))
"""(height, width) of the document's images."""
KEYS = [(number % 3, 9 + number) for number in range(12)]


@pytest.fixture
def path(document: Document, write_coco: CocoWriter) -> Path:
    return write_coco(document)


def open_data(path: Path) -> CocoDetection:
    augment = AugmentConfig(short_sides=SHORT_SIDES, max_side=MAX_SIDE, short_side_per="image")
    split = SplitConfig(images=str(path.parent), annotations=str(path))
    return CocoDetection(split, config=DataConfig(augment=augment), training=True)


def expected_size(index: int, seed: int) -> tuple[int, int]:
    """Return the size of one image on its own: its shorter side is its seed's first choice."""
    short_side = np.random.default_rng(seed).choice(SHORT_SIDES)
    height, width = SIZES[index]
    scale = short_side / min(height, width)
    if scale * max(height, width) > MAX_SIDE:
        scale = MAX_SIDE / max(height, width)
    return round(height * scale), round(width * scale)


def test_each_image_has_its_own_size_and_the_batch_contains_all(path: Path) -> None:
    data = open_data(path)
    shape = data.batch_shape(KEYS)
    sizes = [expected_size(*key) for key in KEYS]
    assert {min(size) for size in sizes} >= set(SHORT_SIDES)
    assert [data.load(*key, shape).pixels.shape[:2] for key in KEYS] == sizes
    heights, widths = zip(*sizes, strict=True)
    assert shape == BatchShape(None, (max(heights), max(widths)))


def test_an_image_is_the_same_in_every_batch(path: Path) -> None:
    data = open_data(path)
    for index, seed in KEYS:
        alone = data.load(index, seed)
        for others in ([(0, 17)], [(1, 5), (2, 6)]):
            shape = data.batch_shape([*others, (index, seed)])
            together = data.load(index, seed, shape)
            np.testing.assert_array_equal(together.pixels, alone.pixels)
            np.testing.assert_array_equal(together.boxes, alone.boxes)


@pytest.mark.parametrize("processes", [2, 3])
def test_all_processes_have_the_batch_of_one(path: Path, processes: int) -> None:
    plan = [[SampleKey(*key) for key in KEYS]]
    (whole,) = split_batches(open_data(path), plan, rank=0, world_size=1, accumulate=1)
    alone = open_data(path)
    expected = alone.collate([alone.load(*key, whole.batch_shape) for key in KEYS]).images
    found, pixels = [], []
    for rank in range(processes):
        data = open_data(path)  # nothing is shared
        (part,) = split_batches(data, plan, rank=rank, world_size=processes, accumulate=1)
        keys = [(key.index, key.seed) for key in part.sample_keys]
        batch = data.collate([data.load(*key, part.batch_shape) for key in keys], part.batch_shape)
        found += keys
        pixels += list(batch.images.pixels)
    for key, image in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(image, expected.pixels[KEYS.index(key)])
