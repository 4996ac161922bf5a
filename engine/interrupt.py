"""Graceful stop: turns Ctrl-C and SIGTERM into a flag that the training loop checks."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from engine.distributed import rank_and_size

_DUPLICATE_S = 1.0
"""Seconds after the first signal in which further ones are duplicates of it: `timeout` sends
SIGTERM twice, to the process and to its group."""


class StopRequest:
    """Flag: a stop of the run was requested. It is checked at each step and evaluation batch."""

    requested = False


@contextlib.contextmanager
def stop_requests(*, after: str = "this step") -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a flag and print a line; a second signal ends the process.

    Does nothing outside the main thread, which never receives signals.

    Args:
        after: what is finished before the stop, for the printed line.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not request.requested:
            request.requested, first = True, time.monotonic()
            name = signal.Signals(number).name
            _print_to_stderr(f"{name}: stopping after {after}; a second signal stops at once")
        elif time.monotonic() - first > _DUPLICATE_S:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    previous: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }
    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print_to_stderr(line: str) -> None:
    """Write a line to stderr, unbuffered.

    `print` cannot be used in a signal handler: the signal may interrupt another `print`, which is
    not re-entrant.
    """
    rank, size = rank_and_size()
    process = f"process {rank}: " if size > 1 else ""
    start = "\n" if os.isatty(2) else ""  # the cursor is behind ^C or a progress bar
    with contextlib.suppress(OSError):  # stderr is closed
        os.write(2, f"{start}{process}{line}\n".encode())
