import pytest
import torch

from detection.ops.sampling import sample_matches
from engine.random_keys import random_keys
from tests.reference import matching as reference

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
