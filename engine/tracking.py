"""Experiment tracking: sends a run's config, numbers and images to wandb, mlflow or trackio.

The tracker's package runs in a process of its own. There it can fail, hang, crash, print, and leave
threads or exit hooks behind; a thread could not be ended, and data loading processes are forked
from this one. Nothing here waits for it, except `finish`, for a limited time.
"""

import json
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine import tracker_process
from engine.errors import UserError
from engine.files import write_file
from engine.paths import is_file, read_text
from engine.run_files import TRACKER_FILE, TRACKER_LOG_FILE
from engine.schema import Config, TrackerName
from engine.text import one_line, shortened
from engine.tracker_process import FINISH_S

MAX_WAITING = 256 * 2**20
"""Bytes that wait for the tracker at most; what comes on top is dropped."""
LATE_S = 60.0
"""Time without an answer after which the log says so, seconds."""
_RECORDS = ("scalars", "image")
"""Methods of a tracker whose calls are counted."""


def check_tracker(name: TrackerName) -> None:
    """Raise UserError if a tracker's package is not installed."""
    # a folder of that name without __init__.py, such as wandb's own, has no origin
    if name != "none" and getattr(find_spec(name), "origin", None) is None:
        raise UserError(
            f"loop.tracker={name}: expected the package {name} to be installed, got none: "
            "pip install 'resdet[track]'"
        )


class Tracking:
    """A run's connection to its tracker.

    The methods never raise, and return at once, except `finish`. Each kind of problem is reported
    once; the last line says how many records were sent.
    """

    def __init__(
        self, name: TrackerName, config: Config, output: Path, *, say: Callable[[str], object]
    ) -> None:
        """Start the tracker's process, which starts or continues a run in the tracker.

        Args:
            name: the tracker, not "none".
            config: the run's config.
            output: the run folder. Its tracker.json holds the id of the run to continue.
            say: prints a line of the log.
        """
        self._name, self._output, self._say = name, output, say
        self._said: set[str] = set()  # kinds of problems that were reported
        self._num_records = self._num_sent = self._num_failed = 0
        self._num_unanswered, self._answered_at = 0, 0.0
        # each of the two is changed by one thread, so they need no lock
        self._queued_bytes = self._written_bytes = 0
        self._calls: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None  # None if it could not be started
        self._threads: list[threading.Thread] = []  # the writing and the reading one
        try:
            with (output / TRACKER_LOG_FILE).open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(Path(tracker_process.__file__)), str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C and the group's SIGTERM are for the run
                )
            for work, pipe in (
                (self._write, self._process.stdin),
                (self._read, self._process.stdout),
            ):
                thread = threading.Thread(target=work, args=[pipe], daemon=True)
                thread.start()
                self._threads.append(thread)
        except (OSError, RuntimeError) as error:  # no memory, no process, no thread
            self._report("start", f"cannot be started: {error}")
            self._calls.put(None)  # ends the writing thread
            if self._process is not None:
                with self._process as process:  # closes its pipes
                    process.kill()
                self._process = None
        settings = config.model_dump(mode="json")
        self._call(name, output.absolute(), settings, self._stored_run_id())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers by name, after `step` updates."""
        self._record("scalars", step, dict(values))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Send an (H, W, 3) uint8 RGB image."""
        self._record("image", step, name, pixels)

    def finish(self, *, completed: bool) -> None:
        """Wait until all is sent, for a limited time, and end the process.

        completed: whether the training came to its end; the tracker shows it.
        """
        if self._process is not None:
            self._call("finish", completed)
            self._calls.put(None)
            try:
                self._process.wait(timeout=FINISH_S)
            except subprocess.TimeoutExpired:
                self._report("finish", f"did not finish within {FINISH_S} s")
            finally:
                self._process.kill()
                for thread in self._threads:
                    thread.join(timeout=1)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=1)
            self._take_answers()
            if self._process.returncode or self._num_unanswered:
                self._report_end(self._process.returncode)
        line = f"loop.tracker={self._name}: {self._num_sent} of {self._num_records} records sent"
        if self._num_sent < self._num_records:
            lost = self._num_records - self._num_sent - self._num_failed
            line += f", {self._num_failed} failed, {lost} dropped"
        self._say(line)

    def _record(self, method: str, *arguments: Any) -> None:
        self._num_records += 1
        if self._process is None:
            return
        is_reading = self._threads[1].is_alive()  # asked first: its last answers are taken below
        self._take_answers()
        if not is_reading and self._process.poll() is not None:
            self._report_end(self._process.returncode)
        elif self._queued_bytes - self._written_bytes > MAX_WAITING:
            self._report("late", "is behind, records are dropped")
        else:
            self._call(method, *arguments)

    def _report_end(self, code: int) -> None:
        """Report that the process ended, unless an answer or `finish` said why."""
        if self._said.isdisjoint(("start", "finish")):
            self._report("process", f"its process ended with code {code}")

    def _call(self, *call: Any) -> None:
        data = pickle.dumps(call)
        if self._num_unanswered == 0:
            self._answered_at = time.monotonic()
        self._num_unanswered += 1
        self._queued_bytes += len(data)
        self._calls.put(data)

    def _take_answers(self) -> None:
        """Count the answers since the last call, and report what is new in them."""
        while not self._answers.empty():
            answer = self._answers.get()
            self._num_unanswered -= 1
            self._answered_at = time.monotonic()
            method = answer["call"]
            if "error" in answer:
                self._num_failed += method in _RECORDS
                self._report(method, f"{method} failed: {answer['error']}")
            elif method in _RECORDS:
                self._num_sent += 1
            elif method == "start":
                self._keep_run_id(answer["run_id"])
                place = "" if answer["place"] is None else f" at {answer['place']}"
                self._say(f"loop.tracker={self._name}: run {answer['run_id']}{place}")
        if self._num_unanswered and time.monotonic() - self._answered_at > LATE_S:
            self._report("late", f"no answer for {LATE_S:.0f} s")

    def _report(self, kind: str, problem: str) -> None:
        """Say a problem, if it is the first of its kind."""
        if kind not in self._said:
            self._said.add(kind)
            problem = shortened(one_line(problem), limit=400)
            log = self._output / TRACKER_LOG_FILE
            self._say(f"loop.tracker={self._name}: {problem}; the run continues; see {log}")

    def _stored_run_id(self) -> str | None:
        """Return the id of the tracker's run that this run folder belongs to."""
        path = self._output / TRACKER_FILE
        try:
            stored = json.loads(read_text(path)) if is_file(path) else {}
            return stored.get(self._name)
        except (AttributeError, ValueError):  # UserError is one
            self._report("id", f"{path}: expected the id of a run, got a damaged file")
            return None

    def _keep_run_id(self, run_id: str) -> None:
        try:
            write_file(self._output / TRACKER_FILE, json.dumps({self._name: run_id}))
        except UserError as error:
            self._report("id", f"a resumed run will be a new one in the tracker: {error}")

    def _write(self, pipe: IO[bytes]) -> None:
        """Send calls to the process; runs in a thread, because a pipe may block."""
        with suppress(OSError), pipe:
            for data in iter(self._calls.get, None):
                with suppress(OSError):  # the process has ended; `_record` sees it
                    pipe.write(data)
                    pipe.flush()
                self._written_bytes += len(data)

    def _read(self, pipe: IO[bytes]) -> None:
        """Collect the answers of the process; runs in a thread, until the process ends."""
        with suppress(ValueError), pipe:  # killed while it wrote a line
            for line in pipe:
                self._answers.put(json.loads(line))
