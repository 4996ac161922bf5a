"""Ctrl-C and SIGTERM as a polite request."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StopRequest:
    """Whether somebody asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a flag; a second signal ends the process at once."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        request.requested = True
        signal.signal(number, previous[number])

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
