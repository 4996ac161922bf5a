import itertools

import numpy as np
import pytest

from detection.datasets.stratify import UnitCounts, stratify


def make_counts(table: np.ndarray) -> UnitCounts:
    rows, columns = np.nonzero(table)
    offsets = np.searchsorted(rows, np.arange(len(table) + 1))
    return UnitCounts(columns, table[rows, columns].astype(float), offsets, table.shape[1])


def error_of(table: np.ndarray, parts: np.ndarray, sizes: np.ndarray) -> float:
    """Return the sum of squared differences to the shares, over the shares."""
    shares = np.outer(sizes / sizes.sum(), table.sum(axis=0))
    counts = np.stack([table[parts == part].sum(axis=0) for part in range(len(sizes))])
    used = shares > 0
    return float(((counts - shares)[used] ** 2 / np.maximum(shares[used], 0.25)).sum())


@pytest.mark.parametrize("seed", range(5))
def test_among_the_best_of_all_divisions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.column_stack([np.ones(12, int), rng.poisson([0.5, 1, 3], (12, 3))])
    sizes = np.array([8, 4])
    errors = sorted(
        error_of(table, np.isin(np.arange(12), chosen).astype(int), sizes)
        for chosen in itertools.combinations(range(12), 4)
    )
    parts = stratify(make_counts(table), sizes, seed=seed)
    assert np.bincount(parts).tolist() == [8, 4]
    assert error_of(table, parts, sizes) <= errors[len(errors) // 50]  # the best 2 %


def test_sizes_are_exact_for_single_images() -> None:
    rng = np.random.default_rng(0)
    table = np.column_stack([np.ones(300, int), rng.poisson([0.05, 5], (300, 2))])
    sizes = np.array([237, 41, 22])
    for seed in range(3):
        parts = stratify(make_counts(table), sizes, seed=seed)
        assert np.bincount(parts).tolist() == sizes.tolist()


def test_large_groups_find_room() -> None:
    images = np.array([50, 1, 1, 30, 1, 10, 1, 1, 5])
    table = np.column_stack([images, images])
    parts = stratify(make_counts(table), np.array([80, 10, 10]), seed=0)
    assert np.bincount(parts, images).tolist() == [80, 10, 10]


@pytest.mark.parametrize("sizes", [[1], [3], [1, 2], [1, 1, 1]])
def test_few_units(sizes: list[int]) -> None:
    table = np.ones((sum(sizes), 1), int)
    parts = stratify(make_counts(table), np.array(sizes), seed=0)
    assert np.bincount(parts).tolist() == sizes
