"""Locks on folders, by a file in or beside them: one that refuses, and one that waits.

The system frees them when their process ends, however it ends. The holder removes the file in the
end, so whoever locks it checks that it is still there. On Windows, without such locks, nothing is
locked.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN
from pathlib import Path
from types import ModuleType

from engine.errors import UserError

_POLL_S = 0.2
"""Seconds between two attempts to lock a folder in use."""


class FolderLock:
    """Keeps other processes out of a folder; its file names who holds it."""

    name = ".lock"

    def __init__(
        self, directory: Path, *, wait_s: float = 0, say: Callable[[str], object] | None = None
    ) -> None:
        """Lock a folder.

        Args:
            directory: the folder.
            wait_s: longest wait for a run that holds it, seconds.
            say: called with a line before the wait.

        Raises:
            UserError: another run holds it for longer, or the file cannot be made.
        """
        self.note: str | None = None
        """What to say where the system or the file system has no locks."""
        path = directory / self.name
        self._file = -1
        fcntl = _fcntl()
        if fcntl is None:
            self.note = (
                f"{directory}: this system has no file locks: do not start a second run in it"
            )
            return
        end, waiting = time.monotonic() + wait_s, False
        while self._file < 0:
            try:
                file = _open(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be created: {error.strerror}") from error
            try:
                # of the process, not of the file: reading processes do not inherit it
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (EACCES, EAGAIN):
                    holder = os.read(file, 500).decode(errors="replace").strip() or "another run"
                    os.close(file)
                    if time.monotonic() < end:
                        if not waiting and say is not None:
                            say(f"{directory}: in use by {holder}; waiting up to {wait_s:g} s")
                        waiting = True
                        time.sleep(_POLL_S)
                        continue
                    waited = f" after {wait_s:g} s" if wait_s else ""
                    raise UserError(
                        f"{directory}: expected a folder that no run writes to, got one in use by "
                        f"{holder}{waited}; stop that, or choose another --output"
                    ) from error
                self.note = (
                    f"{directory}: the file system has no locks: do not start a second run in it"
                )
            if _lies_at(file, path):
                self._file = file
            else:
                os.close(file)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):  # a full disk: the lock holds without the text
            os.ftruncate(self._file, 0)
            text = f"process {os.getpid()} on {socket.gethostname()}, started {started}\n"
            os.write(self._file, text.encode())

    def release(self, directory: Path) -> None:
        """Free the folder, which is now at `directory`, and remove the file from it; once."""
        if self._file < 0:
            return
        with suppress(OSError):
            if _lies_at(self._file, directory / self.name):
                (directory / self.name).unlink()
        os.close(self._file)
        self._file = -1


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, as soon as no other process or thread holds it.

    Raises:
        OSError: it cannot be made.
    """
    fcntl = _fcntl()
    if fcntl is None:
        yield
        return
    while True:
        file = _open(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _lies_at(file, path):
                try:
                    yield
                finally:
                    path.unlink()
                return
        finally:
            os.close(file)


def _fcntl() -> ModuleType | None:
    """Return the module that locks files; None on Windows, which has none."""
    try:
        import fcntl
    except ImportError:
        return None
    return fcntl


def _open(path: Path) -> int:
    """Open the file of a lock; links are not followed, and a FIFO is not waited for."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


def _lies_at(file: int, path: Path) -> bool:
    """Return whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False
