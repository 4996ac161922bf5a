"""Counter-based random numbers on the device: a hash of each image's seed.

B images in a batch.
"""

import torch
from torch import Tensor

_LOW_32 = 0xFFFFFFFF


def random_keys(seeds: Tensor, count: int, *, stream: int) -> Tensor:
    """Return uniform random integers that depend only on (seed, stream, position).

    So an image gets the same numbers regardless of the other images in its batch, the number of
    processes, the device, and `count`.

    Args:
        seeds: (B,) int64, one per image.
        count: numbers per image; may be 0.
        stream: 0 or more; different uses of one seed take different streams.

    Returns:
        (B, count) int64 in [0, 2**31).
    """
    # both halves of the seed and the stream; the multiplier is 2**32 / golden ratio
    seed_hash = _mix(
        (seeds & _LOW_32) ^ _mix((seeds >> 32) & _LOW_32) ^ (stream * 0x9E3779B9 & _LOW_32)
    )
    positions = torch.arange(count, device=seeds.device)
    return _mix(_mix(positions) ^ seed_hash[:, None]) >> 1


def _mix(x: Tensor) -> Tensor:
    """Hash 32-bit integers in an int64 tensor, element by element; a bijection."""
    # 32-bit finaliser with multipliers below 2**31, so that no product overflows int64
    # (Wellons, "hash-prospector": 16 21f0aaad 15 735a2d97 15)
    x = (x + 0x9E3779B9) & _LOW_32  # otherwise 0 would map to 0
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _LOW_32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _LOW_32
    return x ^ (x >> 15)


def random_uniforms(seeds: Tensor, count: int, *, stream: int) -> Tensor:
    """Return `random_keys` as (B, count) float32 in [0, 1)."""
    # the upper 24 of 31 bits: float32 represents all multiples of 2**-24 exactly
    return (random_keys(seeds, count, stream=stream) >> 7).float() / (1 << 24)
