"""What a run tells: the console, `metrics.jsonl` and TensorBoard. Nothing else in a run prints.

A log that cannot be written never ends a run: it is said once, and the lines of metrics.jsonl are
kept until the disk takes them.
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
from rich.text import Text

from engine.errors import UserError
from engine.events import EventFile
from engine.files import write_file
from engine.paths import is_file, read_bytes
from engine.text import printable

T = TypeVar("T")

RATE_WINDOW = 20
"""Log lines over which the speed for the remaining time is averaged."""
PLAIN_PROGRESS_S = 30.0
"""Seconds between lines of progress where there is no terminal."""
METRICS_FILE = "metrics.jsonl"
"""Name of the file in a run folder that has a line for each logged step and each evaluation."""
WIDTH = 100
"""Columns of a step's lines, and of tables where there is no terminal."""
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())


class _Console(Console):
    """A console on which users' text is text: names of files and classes obey as no command."""

    def render_str(self, text: str, **style: Any) -> Text:  # of all that is printed, cells too
        """Return the text, its control characters as escapes; line breaks are our own."""
        return super().render_str(printable(text, keep="\n"), **style)


def make_console(*, stderr: bool = False, width: int = WIDTH) -> Console:
    """Return a console that colours and draws on a terminal alone, and never cuts a line."""
    console = _Console(stderr=stderr, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = width
    return console


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a run's metrics.jsonl.

    Returns:
        Its records, each with `kind` and `step`, and the number of lines that are none, such as the
        half one that a killed run may leave.

    Raises:
        UserError: it cannot be read.
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
    """Writes a run's lines, numbers and images; does nothing on processes other than the main."""

    def __init__(self, directory: Path | None, *, is_main: bool) -> None:
        """Log to the console and, when `directory` is given, to files in it."""
        self._directory = directory if is_main else None
        self._is_main = is_main
        self._console = make_console()
        self._events: EventFile | None = None
        self._num_event_files = 0
        self._purge_step: int | None = None
        self._pending: list[str] = []  # lines that the disk has not taken yet
        self._failed: set[str] = set()  # what could not be written, each said once
        self._times = deque([(0, time.monotonic())], maxlen=RATE_WINDOW)
        self._bar: tuple[Progress, TaskID] | None = None

    def note(self, text: str) -> None:
        """Print one line."""
        if self._is_main:
            self._console.print(printable(text), highlight=False)

    def step(
        self,
        step: int,
        max_steps: int,
        values: Mapping[str, float],
        lr: float,
        images_per_second: float,
    ) -> None:
        """Log the losses after `step` updates, with the time that the rest will take."""
        if not self._is_main:
            return
        first_step, first_time = self._times[0]
        now = time.monotonic()
        seconds = (now - first_time) / max(step - first_step, 1)
        self._times.append((step, now))
        parts = [f"step {step}/{max_steps}", *_written(values), f"lr {lr:.4g}"]
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
            metrics: all of them; the console line leaves out those of one class, `ap/person`.
            table: what rich can print, shown in place of the line.
            record: whether the files get it too.
        """
        if not self._is_main:
            return
        if table is None:
            overall = {name: value for name, value in metrics.items() if "/" not in name}
            self._print_parts([f"evaluation at step {step}", *_written(overall)])
        else:
            self._console.print(table, soft_wrap=False)
        if record:
            self._record("eval", step, metrics)

    def final(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of the weights that a run leaves, which are those of `step`."""
        self._record("final", step, metrics)

    def images(self, step: int, images: Sequence[np.ndarray], tag: str) -> None:
        """Put (H, W, 3) uint8 RGB images into TensorBoard, and the newest into pictures/."""
        if self._directory is None:
            return
        for index, image in enumerate(images):
            name = f"{tag}/{index}"
            path = self._directory / "pictures" / f"{tag}_{index:02d}.png"
            self._try_event(partial(EventFile.image, step=step, name=name, pixels=image))
            self._try(path.name, partial(_write_png, path, image))

    def advance(self, step: int, max_steps: int) -> None:
        """Move the bar between two lines of the log, on a terminal."""
        if not self._is_main or not self._console.is_terminal:
            return
        if self._bar is None:
            bar = Progress(*_COLUMNS, TimeRemainingColumn(), console=self._console, transient=True)
            bar.start()
            self._bar = bar, bar.add_task("training", total=max_steps, completed=step)
        self._bar[0].update(self._bar[1], completed=step)

    def stop_bar(self) -> None:
        """Take the bar away: something else is shown, or the training has ended."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def progress(self, iterable: Iterable[T], total: int, description: str) -> Iterator[T]:
        """Yield the items and show how far it is: a bar on a terminal, else a line now and then."""
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
        """Forget what an earlier run logged beyond `step`, from which this one goes on.

        Args:
            step: steps so far.
            evaluated: whether the evaluation of this step stays as well.
        """
        self._times = deque([(step, time.monotonic())], maxlen=RATE_WINDOW)
        self._purge_step = step + 1
        path = self._directory / METRICS_FILE if self._directory else None
        if path is None or not is_file(path):
            return
        last = {"train": step, "eval": step if evaluated else step - 1}
        records, _ = read_metrics(path)
        kept = [each for each in records if each["step"] <= last.get(each["kind"], -1)]
        text = "".join(f"{json.dumps(record)}\n" for record in kept)
        self._try(METRICS_FILE, lambda: write_file(path, text))

    def close(self) -> None:
        """Write out what is still held back."""
        self.stop_bar()
        self._write_lines()
        if self._pending:
            self.note(f"metrics.jsonl lacks {len(self._pending)} lines that could not be written")
        if self._events is not None:
            self._try("TensorBoard's events", self._events.close)
            self._events = None

    def _print_parts(self, parts: Sequence[str]) -> None:
        """Print what belongs on one line; where it is too long, on several, indented."""
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
        # JSON has no NaN
        values = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        self._pending.append(json.dumps({"kind": kind, "step": step, **values}))
        self._write_lines()
        named = {f"{kind}/{name}": value for name, value in numbers.items()}
        self._try_event(lambda file: file.scalars(step, named))

    def _write_lines(self) -> None:
        """Append the lines that are not in metrics.jsonl yet, each as a whole."""
        if self._directory is not None and self._pending:
            path = self._directory / METRICS_FILE
            self._try(path.name, lambda: _append_lines(path, self._pending))

    def _try_event(self, write: Callable[[EventFile], object]) -> None:
        """Write to TensorBoard's file; after a failure, to a new one."""
        assert self._directory is not None
        directory, number = self._directory, self._num_event_files

        def attempt() -> None:
            if self._events is None:
                self._num_event_files += 1
                purge = self._purge_step
                self._events = EventFile(directory, number=number, purge_step=purge)
                self._purge_step = None
            write(self._events)

        if not self._try("TensorBoard's events", attempt) and self._events is not None:
            with suppress(OSError):
                self._events.close()
            self._events = None

    def _try(self, what: str, write: Callable[[], object]) -> bool:
        """Write a part of the log; say once where it fails, and go on."""
        try:
            write()
        except (OSError, UserError) as error:
            if what not in self._failed:
                self._failed.add(what)
                reason = error.strerror if isinstance(error, OSError) else error
                self.note(f"{what} cannot be written, the run goes on: {reason}")
            return False
        return True


def _append_lines(path: Path, lines: list[str]) -> None:
    """Move lines to the end of a file, or leave both as they were."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        text = "".join(f"{line}\n" for line in lines).encode()
        try:
            if file.write(text) != len(text):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(size)  # else half a line would stand before the next
            raise
    lines.clear()


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image  # comes with torchvision

    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def _written(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in values.items()]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
