"""Random numbers of an image, in Python's integers."""


def random_key(seed: int, stream: int, position: int) -> int:
    """One number of `random_keys`, in Python's integers."""
    seed_hash = _mix((seed % 2**32) ^ _mix((seed >> 32) % 2**32) ^ (stream * 0x9E3779B9 % 2**32))
    return _mix(_mix(position) ^ seed_hash) // 2


def _mix(x: int) -> int:
    x = (x + 0x9E3779B9) % 2**32
    x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
    x = (x ^ x >> 15) * 0x735A2D97 % 2**32
    return x ^ x >> 15
