"""Watchdog: a thread that ends this process if it makes no progress.

A process that waits for its GPU while another process of the run is dead waits in C++, where no
exception reaches it. torch's own watchdog then aborts it with a page of C++ that names no step.
This one writes one line before that.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

from engine.errors import PeerError

_TICK_S = 0.5


class ProgressWatchdog:
    """Ends the process if no progress was reported for `timeout_s` seconds.

    The time counts from the first report; before it nothing happens. It is counted in ticks, so it
    does not advance while the process is suspended (Ctrl-Z). Waits for a GPU release Python's
    lock, so the thread runs during them.
    """

    def __init__(self, process: str, *, timeout_s: float) -> None:
        """Start the thread.

        Args:
            process: this process in the message, such as `process 1 of 0..3`.
            timeout_s: longest time between two reports, in seconds.
        """
        self._process, self._timeout_s = process, timeout_s
        # what was reached; a new tuple for each report, so that the thread sees it by its identity
        self._report: tuple[str] | None = None
        self._num_pauses = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress-watchdog", daemon=True)
        self._thread.start()

    def report(self, what: str) -> None:
        """Start the time anew. what: what was reached, such as `step 120`."""
        self._report = (what,)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count no time inside the context, for waits that have a timeout of their own."""
        self._num_pauses += 1
        try:
            yield
        finally:
            if self._report is not None:
                self.report(*self._report)
            self._num_pauses -= 1

    def close(self) -> None:
        """Stop the thread and wait until it has ended."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        tick_s = min(_TICK_S, self._timeout_s / 10)
        seen, waited_s = self._report, 0.0
        while not self._closed.wait(tick_s):
            report = self._report
            if report is None or report is not seen or self._num_pauses:
                seen, waited_s = report, 0.0
                continue
            waited_s += tick_s
            if waited_s >= self._timeout_s:
                self._end_process(*report)

    def _end_process(self, what: str) -> None:
        """Write a line to stderr and end the process with the exit code of a PeerError."""
        line = (
            f"error: {self._process}: no progress for {self._timeout_s:g} s since {what}: probably "
            "another process ended or does not answer; if a step may take that long, raise "
            "loop.collective_timeout_s"
        )
        start = "\n" if os.isatty(2) else ""  # the cursor may be behind a progress bar
        with contextlib.suppress(OSError):  # stderr is closed
            # not sys.stderr: the main thread may hold its lock, and it is buffered
            os.write(2, f"{start}{line}\n".encode())
        os._exit(PeerError.exit_code)  # sys.exit would end only this thread
