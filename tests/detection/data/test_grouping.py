import itertools

import numpy as np
import pytest

from detection.data.grouping import MIN_GROUP, aspect_groups
from detection.data.transforms import resized_size


def groups_of(sizes: np.ndarray, count: int, *, batch_size: int = 1) -> np.ndarray:
    groups = aspect_groups(sizes, count, batch_size=batch_size, short_side=800, max_side=1333)
    assert groups.shape == (len(sizes),)
    assert groups.dtype == np.int64
    return groups


def padded_pixels(sizes: np.ndarray, groups: np.ndarray) -> int:
    resized = np.array([resized_size((h, w), 800, 1333) for h, w in sizes.tolist()])
    members = [resized[groups == group] for group in np.unique(groups)]
    return sum(len(part) * int(part.max(axis=0).prod()) for part in members)


SHAPES = np.array([[40, 10], [30, 10], [30, 20], [30, 30], [30, 60], [30, 90]])


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0, 0, 0, 0, 0, 0]), (2, [0, 0, 0, 1, 1, 1]), (8, [0, 0, 0, 1, 1, 1])],
    ids=str,
)
def test_few_images_are_portrait_or_landscape(count: int, expected: list[int]) -> None:
    assert groups_of(SHAPES, count).tolist() == expected
    assert groups_of(SHAPES[:0], count).tolist() == []


@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_groups_pad_least(count: int) -> None:
    """Against all ways to cut seven shapes into as many groups."""
    shapes = np.array([[480, 640], [480, 600], [640, 480], [640, 427], [300, 640], [5, 5], [9, 8]])
    repeats = np.array([40, 33, 50, 35, 60, 90, 32])
    order = np.argsort(shapes[:, 1] / shapes[:, 0])
    sizes = shapes[order].repeat(repeats[order], axis=0)
    steps = np.arange(len(shapes)).repeat(repeats[order])
    cuts = itertools.combinations(range(1, len(shapes)), count - 1)
    best = min(padded_pixels(sizes, np.searchsorted(cut, steps, side="right")) for cut in cuts)
    groups = groups_of(sizes, count)
    assert padded_pixels(sizes, groups) == best
    assert np.unique(groups).tolist() == list(range(count))


@pytest.mark.parametrize(
    ("batch_size", "smallest", "most"), [(1, MIN_GROUP, 9), (40, 80, 3), (70, 140, 2)]
)
def test_no_group_is_small(batch_size: int, smallest: int, most: int) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(200, 640, size=(300, 2))
    groups = groups_of(sizes, 20, batch_size=batch_size)
    counts = np.bincount(groups)
    assert counts.min() >= smallest
    assert 1 < len(counts) <= most
    aspect = sizes[:, 1] / sizes[:, 0]
    bounds = [(aspect[groups == g].min(), aspect[groups == g].max()) for g in range(len(counts))]
    assert all(low < high for (_, low), (high, _) in itertools.pairwise(bounds))


def test_images_of_one_shape_are_one_group() -> None:
    assert groups_of(np.full((500, 2), 7), 8).tolist() == [0] * 500
