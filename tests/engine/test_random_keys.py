"""Counter-based random numbers."""

import torch

from engine.random_keys import random_keys, random_uniforms
from tests.reference import random_keys as reference


def test_keys_equal_the_reference() -> None:
    seeds = [0, 1, -1, 2**31, 2**40 + 7, 2**63 - 1, -(2**63)]
    keys = random_keys(torch.tensor(seeds), 50, stream=3)
    expected = [[reference.random_key(seed, 3, i) for i in range(50)] for seed in seeds]
    assert keys.tolist() == expected


def test_keys_depend_only_on_seed_stream_and_position() -> None:
    seeds = torch.tensor([5, 6])
    keys = random_keys(seeds, 1000, stream=0)
    torch.testing.assert_close(random_keys(seeds.flip(0), 10, stream=0), keys.flip(0)[:, :10])
    assert (keys[0] != keys[1]).float().mean() > 0.99
    assert (random_keys(seeds, 1000, stream=1) != keys).float().mean() > 0.99
    assert random_keys(seeds, 0, stream=0).shape == (2, 0)


def test_keys_are_uniform_and_independent() -> None:
    # 100 consecutive seeds, as a run has them
    shares = random_keys(torch.arange(100), 10_000, stream=1).double() / 2**31
    assert shares.min() >= 0
    assert shares.max() < 1
    # a million numbers: standard error 0.0003 of the mean, and 0.0003 of a bin's share
    assert abs(shares.mean().item() - 0.5) < 0.0015
    bins = torch.histc(shares, bins=10, min=0, max=1) / shares.numel()
    torch.testing.assert_close(bins, torch.full_like(bins, 0.1), atol=0.0015, rtol=0)
    centered = shares - 0.5
    for other in (centered.roll(1, 0), centered.roll(1, 1), centered.roll((1, 1), (0, 1))):
        assert abs((centered * other).mean().item() * 12) < 0.005


def test_uniforms_are_scaled_keys() -> None:
    seeds = torch.arange(50)
    uniforms = random_uniforms(seeds, 1000, stream=2)
    torch.testing.assert_close(
        uniforms.double(), random_keys(seeds, 1000, stream=2).double() / 2**31, atol=1e-7, rtol=0
    )
    assert uniforms.min() >= 0
    assert uniforms.max() < 1  # rounding to float32 must not reach 1
