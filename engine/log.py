"""Logging of a run to the console, `metrics.jsonl`, TensorBoard and a tracker. Nothing else prints.

A log that cannot be written never ends a run. The problem is reported once, and lines of
metrics.jsonl are kept in memory until they can be written.
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from errno import ENOSPC
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from engine.errors import UserError
from engine.events import EventFile
from engine.files import write_file
from engine.paths import is_file, read_bytes
from engine.run_files import LOG_FILE
from engine.schema import RunConfig
from engine.text import printable
from engine.tracking import Tracking

T = TypeVar("T")

RATE_WINDOW = 20
"""Number of log lines over which the speed is averaged for the estimated time."""
PLAIN_PROGRESS_S = 30.0
"""Seconds between progress lines if the output is not a terminal."""
WIDTH = 100
"""Columns of a step's lines, and of tables if the output is not a terminal."""
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())


class _Console(Console):
    """A console that escapes control characters, which file and class names may contain."""

    def render_str(self, text: str, **style: Any) -> Text:  # called for all text, also in tables
        """Return the text with control characters escaped, except line breaks, which are ours."""
        return super().render_str(printable(text, keep="\n"), **style)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, but break words in a narrow table, which rich cuts to "wor…"."""
        for table in objects:
            for column in table.columns if isinstance(table, Table) else ():
                column.overflow = "fold"
        super().print(*objects, **options)


def make_console(*, stderr: bool = False, width: int = WIDTH) -> Console:
    """Return a console that uses colours only on a terminal, and never truncates a line.

    Args:
        stderr: write to stderr instead of stdout.
        width: columns if the output is not a terminal.
    """
    console = _Console(stderr=stderr, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = width
    return console


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a run's metrics.jsonl.

    Returns:
        The records, each with `kind` and `step`, and the number of damaged lines, such as a partial
        line of a killed run.

    Raises:
        UserError: the file cannot be read.
    """
    lines = read_bytes(path).decode(errors="replace").splitlines()
    records = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("kind"), str):
                records += [record] if type(record.get("step")) is int else []
    return records, len(lines) - len(records)


class RunLog:
    """Logs a run's lines, numbers and images; does nothing on processes other than the main one."""

    def __init__(self, directory: Path | None, *, is_main: bool) -> None:
        """Log to the console and, if `directory` is not None, to files in it."""
        self._directory = directory if is_main else None
        self._is_main = is_main
        self._console = make_console()
        self._events: EventFile | None = None
        self._num_event_files = 0
        self._purge_step: int | None = None
        self._pending: list[str] = []  # lines that are not in metrics.jsonl yet
        self._failed: set[str] = set()  # what could not be written; each is reported once
        self._times = deque([(0, time.monotonic())], maxlen=RATE_WINDOW)
        self._bar: tuple[Progress, TaskID] | None = None
        self._tracking: Tracking | None = None
        self._completed = False

    def track(self, config: RunConfig) -> None:
        """Send the config, and from now on numbers and images, to the tracker of `loop.tracker`."""
        if self._directory is not None and config.loop.tracker != "none":
            self._tracking = Tracking(config.loop.tracker, config, self._directory, say=self.note)

    def note(self, text: str) -> None:
        """Print one line."""
        if self._is_main:
            self._console.print(printable(text), highlight=False)

    def table(self, table: Table) -> None:
        """Print a table."""
        if self._is_main:
            self._console.print(table, soft_wrap=False)

    def step(
        self,
        step: int,
        max_steps: int,
        values: Mapping[str, float],
        lr: float,
        images_per_second: float,
    ) -> None:
        """Log losses, learning rate, speed and the remaining time after `step` updates.

        values: losses and measurements by name, means since the last call.
        """
        if not self._is_main:
            return
        # the oldest of the last RATE_WINDOW lines
        first_step, first_time = self._times[0]
        now = time.monotonic()
        seconds = (now - first_time) / max(step - first_step, 1)
        self._times.append((step, now))
        parts = [f"step {step}/{max_steps}", *_formatted(values), f"lr {lr:.4g}"]
        eta = _duration(seconds * (max_steps - step))
        self._print_parts([*parts, f"{images_per_second:.1f} images/s", f"eta {eta}"])
        numbers = {**values, "lr": lr, "images_per_second": images_per_second}
        self._record("train", step, numbers)

    def evaluation(
        self, step: int, metrics: Mapping[str, float], table: Any = None, *, record: bool = True
    ) -> None:
        """Log an evaluation after `step` updates.

        Args:
            step: optimiser updates so far.
            metrics: by name; the console line omits per-class ones such as `ap/person`.
            table: printable by rich, shown instead of the line.
            record: whether to write the metrics to the files too.
        """
        if not self._is_main:
            return
        if table is None:
            overall = {name: value for name, value in metrics.items() if "/" not in name}
            self._print_parts([f"evaluation at step {step}", *_formatted(overall)])
        else:
            self._console.print(table, soft_wrap=False)
        if record:
            self._record("eval", step, metrics)

    def final(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of the exported weights, which are those after `step` updates."""
        self._record("final", step, metrics)
        self._completed = True

    def images(self, step: int, images: Sequence[np.ndarray], tag: str) -> None:
        """Log (H, W, 3) uint8 RGB images; only the newest ones are kept in pictures/."""
        if self._directory is None:
            return
        for index, image in enumerate(images):
            name = f"{tag}/{index}"
            path = self._directory / "pictures" / f"{tag}_{index:02d}.png"
            self._try_event(partial(EventFile.image, step=step, name=name, pixels=image))
            self._try(path.name, partial(_write_png, path, image))
            if self._tracking is not None:
                self._tracking.image(step, name, image)

    def advance(self, step: int, max_steps: int) -> None:
        """Update the progress bar, on a terminal."""
        if not self._is_main or not self._console.is_terminal:
            return
        if self._bar is None:
            bar = Progress(*_COLUMNS, TimeRemainingColumn(), console=self._console, transient=True)
            bar.start()
            self._bar = bar, bar.add_task("training", total=max_steps, completed=step)
        self._bar[0].update(self._bar[1], completed=step)

    def stop_bar(self) -> None:
        """Remove the progress bar, before other output or at the end of training."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def progress(self, iterable: Iterable[T], total: int, description: str) -> Iterator[T]:
        """Yield the items and show progress: a bar on a terminal, otherwise a line now and then.

        total: number of items.
        """
        if not self._is_main:
            yield from iterable
        elif self._console.is_terminal:
            self.stop_bar()
            with Progress(
                *_COLUMNS, TimeRemainingColumn(), console=self._console, transient=True
            ) as bar:
                yield from bar.track(iterable, total=total, description=description)
        else:
            yield from self._plain_progress(iterable, total, description)

    def truncate_after(self, step: int, *, evaluated: bool = True) -> None:
        """Remove what an earlier run logged after `step`, from which this run resumes.

        Args:
            step: optimiser updates of the resumed checkpoint.
            evaluated: whether to keep the evaluation of this step too.
        """
        self._times = deque([(step, time.monotonic())], maxlen=RATE_WINDOW)
        self._purge_step = step + 1  # the next event file tells TensorBoard to drop later events
        path = self._directory / LOG_FILE if self._directory else None
        if path is None or not is_file(path):
            return
        # the last step that is kept of each kind; records of other kinds are dropped
        last = {"train": step, "eval": step if evaluated else step - 1}
        records, _ = read_metrics(path)
        kept = [each for each in records if each["step"] <= last.get(each["kind"], -1)]
        text = "".join(f"{json.dumps(record)}\n" for record in kept)
        self._try(LOG_FILE, lambda: write_file(path, text))

    def close(self) -> None:
        """Write pending lines and close the files."""
        self.stop_bar()
        self._write_lines()
        if self._pending:
            self.note(f"metrics.jsonl lacks {len(self._pending)} lines that could not be written")
        if self._events is not None:
            self._try("TensorBoard's events", self._events.close)
            self._events = None
        if self._tracking is not None:
            self._tracking.finish(completed=self._completed)
            self._tracking = None

    def _print_parts(self, parts: Sequence[str]) -> None:
        """Print the parts of a line; if it is longer than WIDTH, on several lines, indented."""
        lines = [""]
        for part in parts:
            if lines[-1].strip() and len(lines[-1]) + 2 + len(part) > WIDTH:
                lines.append("   ")
            lines[-1] += f"  {part}" if lines[-1] else part
        for line in lines:
            self._console.print(line)

    def _plain_progress(self, iterable: Iterable[T], total: int, description: str) -> Iterator[T]:
        start = shown = time.monotonic()
        for count, item in enumerate(iterable, start=1):
            yield item
            now = time.monotonic()
            if now - shown >= PLAIN_PROGRESS_S:
                shown = now
                eta = _duration((now - start) / count * (total - count))
                self.note(f"{description} {count}/{total}  eta {eta}")

    def _record(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        if self._directory is None:
            return
        # JSON has no NaN; null stands for it
        values = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._pending.append(json.dumps({"kind": kind, "step": step, **values}))
        self._write_lines()
        named = {f"{kind}/{name}": value for name, value in numbers.items()}
        self._try_event(lambda file: file.scalars(step, named))
        if self._tracking is not None:
            self._tracking.scalars(step, named)

    def _write_lines(self) -> None:
        """Append the pending lines to metrics.jsonl; all of them or none."""
        if self._directory is not None and self._pending:
            path = self._directory / LOG_FILE
            self._try(path.name, lambda: _append_lines(path, self._pending))

    def _try_event(self, write: Callable[[EventFile], object]) -> None:
        """Write to TensorBoard's event file; after a failure, start a new file next time."""
        assert self._directory is not None
        directory, number = self._directory, self._num_event_files

        def attempt() -> None:
            if self._events is None:
                self._num_event_files += 1
                purge = self._purge_step
                self._events = EventFile(directory, number=number, purge_step=purge)
                self._purge_step = None
            write(self._events)

        # the record that failed may be partial, and readers stop there: so start a new file
        if not self._try("TensorBoard's events", attempt) and self._events is not None:
            with suppress(OSError):
                self._events.close()
            self._events = None

    def _try(self, what: str, write: Callable[[], object]) -> bool:
        """Write to a log file; return whether it worked. A failure is reported once per file."""
        try:
            write()
        except (OSError, UserError) as error:
            if what not in self._failed:
                self._failed.add(what)
                reason = error.strerror if isinstance(error, OSError) else error
                self.note(f"{what} cannot be written, the run continues: {reason}")
            return False
        return True


def _append_lines(path: Path, lines: list[str]) -> None:
    """Append lines to a file and clear the list; on an error both are unchanged."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        text = "".join(f"{line}\n" for line in lines).encode()
        try:
            if file.write(text) != len(text):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(size)  # otherwise a partial line would precede the next one
            raise
    lines.clear()


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image  # a dependency of torchvision

    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def _formatted(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in values.items()]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
