"""Random numbers on the device that depend on an image's seed and on nothing else."""

import torch
from torch import Tensor

_LOW_32 = 0xFFFFFFFF


def random_keys(seeds: Tensor, count: int, *, stream: int) -> Tensor:
    """Return uniform random integers that depend on (seed, stream, position) and on nothing else.

    So an image draws the same whatever its neighbours in the batch, the number of processes, the
    device, and `count`.

    Args:
        seeds: (B,) int64, one for each image.
        count: numbers for each image; may be 0.
        stream: tells apart the uses of one seed; 0 or more.

    Returns:
        (B, count) int64 in [0, 2**31).
    """
    seed_hash = _mix(
        (seeds & _LOW_32) ^ _mix((seeds >> 32) & _LOW_32) ^ (stream * 0x9E3779B9 & _LOW_32)
    )
    positions = torch.arange(count, device=seeds.device)
    return _mix(_mix(positions) ^ seed_hash[:, None]) >> 1


def _mix(x: Tensor) -> Tensor:
    # 32-bit finaliser with multipliers below 2**31, so that no product overflows int64
    # (Wellons, "hash-prospector": 16 21f0aaad 15 735a2d97 15)
    x = (x + 0x9E3779B9) & _LOW_32  # 0 would stay 0
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW_32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _LOW_32
    return x ^ (x >> 15)


def random_uniforms(seeds: Tensor, count: int, *, stream: int) -> Tensor:
    """Return `random_keys` as (B, count) float32 in [0, 1)."""
    return (random_keys(seeds, count, stream=stream) >> 7).float() / (1 << 24)
