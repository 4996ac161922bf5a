"""Ctrl-C and SIGTERM as a polite request."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from engine.distributed import rank_and_size

_AGAIN_S = 1.0
"""Signals that come sooner than this after the first, seconds, belong to it: `timeout` sends its
SIGTERM twice, to the process and to its group."""


class StopRequest:
    """Whether somebody asked the run to stop. Cheap to ask: each step and evaluation batch does."""

    requested = False


@contextlib.contextmanager
def stop_requests(*, after: str = "this step") -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a flag, and say so; a later second one ends the process at once.

    In a thread other than the main one, where signals never arrive, nothing changes. `after` says
    what is still finished.
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
            _say(f"{signal.Signals(number).name}: stopping after {after}; again stops at once")
        elif time.monotonic() - first > _AGAIN_S:
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


def _say(line: str) -> None:
    """Write a line to the console at once.

    Not by print: a signal may arrive in the middle of one, which cannot be entered twice.
    """
    rank, size = rank_and_size()
    process = f"process {rank}: " if size > 1 else ""
    start = "\n" if os.isatty(2) else ""  # behind ^C, or a bar
    with contextlib.suppress(OSError):  # nobody listens
        os.write(2, f"{start}{process}{line}\n".encode())
