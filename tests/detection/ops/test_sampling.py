import pytest
import torch

from detection.ops.sampling import random_keys, sample_matches
from tests.reference import matching as reference


def test_keys_are_the_reference() -> None:
    seeds = [0, 1, -1, 2**31, 2**40 + 7, 2**63 - 1, -(2**63)]
    keys = random_keys(torch.tensor(seeds), 50, stream=3)
    expected = [[reference.random_key(seed, 3, i) for i in range(50)] for seed in seeds]
    assert keys.tolist() == expected


def test_keys_depend_on_seed_stream_and_position_alone() -> None:
    seeds = torch.tensor([5, 6])
    keys = random_keys(seeds, 1000, stream=0)
    torch.testing.assert_close(random_keys(seeds.flip(0), 10, stream=0), keys.flip(0)[:, :10])
    assert (keys[0] != keys[1]).float().mean() > 0.99
    assert (random_keys(seeds, 1000, stream=1) != keys).float().mean() > 0.99
    assert random_keys(seeds, 0, stream=0).shape == (2, 0)


def test_keys_are_uniform_and_independent() -> None:
    # 100 seeds in a row, as a run has them
    shares = random_keys(torch.arange(100), 10_000, stream=1).double() / 2**31
    assert shares.min() >= 0
    assert shares.max() < 1
    # a million draws: the mean's standard error is 0.0003, that of a bin's share 0.0003
    assert abs(shares.mean().item() - 0.5) < 0.0015
    bins = torch.histc(shares, bins=10, min=0, max=1) / shares.numel()
    torch.testing.assert_close(bins, torch.full_like(bins, 0.1), atol=0.0015, rtol=0)
    centered = shares - 0.5
    for other in (centered.roll(1, 0), centered.roll(1, 1), centered.roll((1, 1), (0, 1))):
        assert abs((centered * other).mean().item() * 12) < 0.005


CASES = {
    "many of both": ([0.3, 0.5, 0.2], 30, 0.5),
    "little foreground": ([0.02, 0.9, 0.08], 60, 0.5),
    "little background": ([0.8, 0.05, 0.15], 60, 0.25),
    "only ignored": ([0.0, 0.0, 1.0], 20, 0.5),
    "only foreground": ([1.0, 0.0, 0.0], 20, 0.5),
    "more than there are": ([0.4, 0.4, 0.2], 500, 0.5),
    "no foreground wanted": ([0.5, 0.5, 0.0], 20, 0.0),
    "only foreground wanted": ([0.5, 0.5, 0.0], 20, 1.0),
    "one": ([0.5, 0.5, 0.0], 1, 0.5),
}


@pytest.mark.parametrize(("shares", "num_samples", "fg_fraction"), CASES.values(), ids=CASES)
def test_samples_are_the_reference(
    shares: list[float], num_samples: int, fg_fraction: float
) -> None:
    kinds = torch.multinomial(torch.tensor(shares), 4 * 100, replacement=True)
    labels = torch.tensor([1, 0, -1])[kinds].view(4, 100)
    keys = random_keys(torch.arange(4), 100, stream=0)
    idxs, is_fg, valid = sample_matches(
        labels, keys, num_samples=num_samples, fg_fraction=fg_fraction
    )
    assert idxs.shape == is_fg.shape == valid.shape == (4, min(num_samples, 100))
    assert idxs.min() >= 0
    assert idxs.max() < 100
    for i in range(4):
        foreground, background = reference.sample(
            labels[i].tolist(), keys[i].tolist(), num_samples=num_samples, fg_fraction=fg_fraction
        )
        chosen = foreground + background
        assert idxs[i, : len(chosen)].tolist() == chosen
        assert is_fg[i].nonzero()[:, 0].tolist() == list(range(len(foreground)))
        assert valid[i].nonzero()[:, 0].tolist() == list(range(len(chosen)))


def test_of_equal_keys_the_last_are_taken() -> None:
    labels = torch.ones(1, 9, dtype=torch.int64)
    idxs, _, valid = sample_matches(
        labels, torch.full_like(labels, 2**31 - 1), num_samples=4, fg_fraction=1.0
    )
    assert valid.all()
    assert idxs[0].tolist() == [8, 7, 6, 5]


def test_no_candidates() -> None:
    none = torch.zeros(2, 0, dtype=torch.int64)
    idxs, is_fg, valid = sample_matches(none, none, num_samples=4, fg_fraction=0.5)
    assert idxs.shape == is_fg.shape == valid.shape == (2, 0)
