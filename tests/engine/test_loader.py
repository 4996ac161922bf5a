"""Planning of batches, and reading them."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import UserError
from engine.loader import (
    LoadedBatch,
    SampleKey,
    evaluation_batches,
    read_batches,
    split_batches,
    training_batches,
)
from engine.schema import LoaderConfig
from tests.engine.toy import ToyData

GROUPS = np.array([0, 1, 0, 0, 1, 2, 0, 1, 0, 0, 1])


def take(count: int, **changes: Any) -> list[list[SampleKey]]:
    arguments: dict[str, Any] = {"batch_size": 3, "seed": 7} | changes
    return list(itertools.islice(training_batches(GROUPS, **arguments), count))


def test_batches_are_full_and_of_one_group() -> None:
    for batch in take(50):
        assert len(batch) == 3
        assert len({GROUPS[key.index] for key in batch}) == 1


def test_every_image_is_used_once_per_epoch() -> None:
    drawn = [key.index for batch in take(11 * 30 // 3) for key in batch]
    counts = np.bincount(drawn, minlength=len(GROUPS))
    assert counts.max() - counts.min() <= 3  # at most batch_size are queued at any time


@pytest.mark.parametrize("start", [0, 1, 5, 23])
def test_start_skips_exactly_the_batches_before(start: int) -> None:
    assert take(10, start=start) == take(10 + start)[start:]


@pytest.mark.parametrize("batch_size", [1, 3, 11, 25])
@pytest.mark.parametrize("repeats", [1, 3])
def test_one_group_starts_without_the_epochs_before(batch_size: int, repeats: int) -> None:
    def of_one_group(start: int) -> Iterator[list[SampleKey]]:
        groups = np.zeros(11, dtype=np.int64)
        return training_batches(groups, batch_size=batch_size, seed=7, repeats=repeats, start=start)

    planned = list(itertools.islice(of_one_group(0), 60))
    for start in range(0, 50, 7):
        assert list(itertools.islice(of_one_group(start), 10)) == planned[start : start + 10]
    # planning all batches before this one would take hours
    assert len(next(of_one_group(10**9))) == batch_size


def test_seed_changes_order_and_sample_seeds() -> None:
    assert take(5) != take(5, seed=8)
    assert len({key.seed for batch in take(40) for key in batch}) == 120


def test_repeats_of_an_image_are_adjacent_with_different_seeds() -> None:
    drawn = [key for batch in take(11 * 3, repeats=3) for key in batch]
    assert len({key.seed for key in drawn}) == len(drawn)
    counts = np.bincount([key.index for key in drawn], minlength=len(GROUPS))
    assert counts.tolist() == [9] * len(GROUPS)
    in_group = [key.index for key in drawn if GROUPS[key.index] == 0]
    assert all(len(set(in_group[i : i + 3])) == 1 for i in range(0, len(in_group), 3))


@pytest.mark.parametrize("repeats", [1, 3])
def test_factors_of_one_change_nothing(repeats: int) -> None:
    factors = np.ones(len(GROUPS))
    assert take(40, repeats=repeats, factors=factors) == take(40, repeats=repeats)


@pytest.mark.parametrize("start", [0, 1, 5, 23])
def test_factors_are_sampled_again_on_resuming(start: int) -> None:
    factors = np.linspace(1, 4, len(GROUPS))
    planned = take(10 + start, factors=factors)
    assert take(10, start=start, factors=factors) == planned[start:]
    assert all(len({GROUPS[key.index] for key in batch}) == 1 for batch in planned)


def test_whole_factors_are_places_in_every_epoch_in_random_order() -> None:
    factors = np.array([1.0, 2.0, 3.0])
    plan = training_batches(np.zeros(3, np.int64), batch_size=6, seed=3, factors=factors)
    epochs = [[key.index for key in batch] for batch in itertools.islice(plan, 50)]
    assert all(np.bincount(epoch).tolist() == [1, 2, 3] for epoch in epochs)
    # all of an image's places are adjacent in 4 of 20 epochs at random, not in all
    adjacent = sum("222" in "".join(map(str, epoch)) for epoch in epochs)
    assert adjacent < 25
    assert len({tuple(epoch) for epoch in epochs}) > 25


def test_processes_and_parts_split_the_global_batch() -> None:
    plan = [[SampleKey(i, i) for i in range(8)]]
    parts = [
        list(split_batches(ToyData(), plan, rank=rank, world_size=2, accumulate=2))
        for rank in range(2)
    ]
    assert [[d.index for d in part.sample_keys] for part in parts[0]] == [[0, 4], [2, 6]]
    assert [[d.index for d in part.sample_keys] for part in parts[1]] == [[1, 5], [3, 7]]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_evaluation_reads_every_image_once_by_group(batch_size: int) -> None:
    plan = evaluation_batches(GROUPS, batch_size=batch_size)
    assert sorted(key.index for part in plan for key in part.sample_keys) == list(
        range(len(GROUPS))
    )
    assert all(len({GROUPS[key.index] for key in part.sample_keys}) == 1 for part in plan)
    assert max(len(part.sample_keys) for part in plan) <= batch_size


def test_no_images_is_an_error() -> None:
    with pytest.raises(UserError, match="at least one image"):
        next(training_batches(np.array([], dtype=np.int64), batch_size=1, seed=0))


def read(data: ToyData, *, workers: int, substitute: bool) -> list[LoadedBatch]:
    plan = evaluation_batches(data.groups, batch_size=4)
    return list(
        read_batches(
            data,
            plan,
            config=LoaderConfig(workers=workers),
            device=torch.device("cpu"),
            substitute=substitute,
        )
    )


@pytest.mark.extended
def test_workers_do_not_change_batches() -> None:
    without, with_workers = (
        read(ToyData(), workers=workers, substitute=False) for workers in (0, 2)
    )
    for one, other in zip(without, with_workers, strict=True):
        assert one.batch is not None
        assert other.batch is not None
        torch.testing.assert_close(one.batch.inputs, other.batch.inputs)  # type: ignore[attr-defined]


def test_bad_images_are_dropped_in_evaluation_and_replaced_in_training() -> None:
    data = ToyData(8, bad=[0, 2])
    evaluated = read(data, workers=0, substitute=False)
    assert [len(d.batch) for d in evaluated if d.batch is not None] == [2, 4]
    assert evaluated[0].skipped == ("row 0 is bad", "row 2 is bad")
    trained = read(data, workers=0, substitute=True)
    assert [len(d.batch) for d in trained if d.batch is not None] == [4, 4]
    assert trained[0].batch is not None
    assert trained[0].batch.image_ids.tolist() == [1, 3, 4, 6]


def test_batch_of_only_bad_images_is_reported() -> None:
    (loaded,) = read(ToyData(1, bad=[0]), workers=0, substitute=False)
    assert loaded.batch is None
    assert loaded.skipped == ("row 0 is bad",)


def test_training_on_only_bad_images_fails_with_a_reason() -> None:
    with pytest.raises(UserError, match=r"bad images in a row.*row \d is bad"):
        read(ToyData(4, bad=range(4)), workers=0, substitute=True)
