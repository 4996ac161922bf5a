"""Reference random keys, with Python integers."""


def random_key(seed: int, stream: int, position: int) -> int:
    """Return one number of `engine.random_keys.random_keys`."""
    seed_hash = _mix((seed % 2**32) ^ _mix((seed >> 32) % 2**32) ^ (stream * 0x9E3779B9 % 2**32))
    return _mix(_mix(position) ^ seed_hash) // 2


def _mix(x: int) -> int:
    x = (x + 0x9E3779B9) % 2**32
    x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
    x = (x ^ x >> 15) * 0x735A2D97 % 2**32
    return x ^ x >> 15
