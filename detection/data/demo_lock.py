"""A lock beside the demo's folder: of several processes that start at once, one draws."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that lies at `path` as long as it is held or waited for.

    Raises:
        OSError: it cannot be made; a link or another kind of file there is never followed.
    """
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _lies_at(lock, path):
                try:
                    yield
                finally:
                    path.unlink()
                return
        finally:
            os.close(lock)


def _lies_at(lock: int, path: Path) -> bool:
    """Whether an open file is the one at `path`: who held the lock before has removed its file."""
    try:
        return os.path.samestat(os.fstat(lock), path.lstat())
    except FileNotFoundError:
        return False
