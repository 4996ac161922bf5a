"""What a run tells: the console, `metrics.jsonl` and TensorBoard. Nothing else in a run prints."""

import json
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine.files import write_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

T = TypeVar("T")

RATE_WINDOW = 20
"""Log lines over which the speed for the remaining time is averaged."""
PLAIN_PROGRESS_S = 30.0
"""Seconds between lines of progress where there is no terminal."""
PLAIN_WIDTH = 160
"""Columns that tables may take where there is no terminal."""


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that colours and draws on a terminal alone, and never cuts a line."""
    console = Console(stderr=stderr, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


class RunLog:
    """Writes a run's lines, numbers and pictures; does nothing on processes other than the main."""

    def __init__(self, directory: Path | None, *, is_main: bool) -> None:
        """Log to the console and, when `directory` is given, to files in it."""
        self._directory = directory if is_main else None
        self._is_main = is_main
        self._console = make_console()
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._times = deque([(0, time.monotonic())], maxlen=RATE_WINDOW)

    def note(self, text: str) -> None:
        """Print one line."""
        if self._is_main:
            self._console.print(text, highlight=False)

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
        self._console.print("  ".join([*parts, f"{images_per_second:.1f} images/s", f"eta {eta}"]))
        numbers = {**values, "lr": lr, "images_per_second": images_per_second}
        self._record("train", step, numbers)

    def evaluation(self, step: int, metrics: Mapping[str, float], table: Any = None) -> None:
        """Log an evaluation after `step` updates.

        Args:
            step: optimiser updates so far.
            metrics: all of them; the console line leaves out those of one class, `ap/person`.
            table: what rich can print, shown in place of the line.
        """
        if not self._is_main:
            return
        if table is None:
            overall = {name: value for name, value in metrics.items() if "/" not in name}
            self._console.print("  ".join([f"evaluation at step {step}", *_written(overall)]))
        else:
            self._console.print(table, soft_wrap=False)
        self._record("eval", step, metrics)

    def pictures(self, step: int, pictures: Sequence[np.ndarray], tag: str) -> None:
        """Put (H, W, 3) uint8 RGB pictures into TensorBoard, and the newest into pictures/."""
        if self._directory is None:
            return
        from PIL import Image  # comes with torchvision; TensorBoard uses it too

        folder = self._directory / "pictures"
        folder.mkdir(exist_ok=True)
        for index, picture in enumerate(pictures):
            writer = self._tensorboard(self._directory)
            writer.add_image(f"{tag}/{index}", picture, step, dataformats="HWC")
            Image.fromarray(picture).save(folder / f"{tag}_{index:02d}.png")

    def progress(self, iterable: Iterable[T], total: int, description: str) -> Iterator[T]:
        """Yield the items and show how far it is: a bar on a terminal, else a line now and then."""
        if not self._is_main:
            yield from iterable
        elif self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(
                *columns, TimeRemainingColumn(), console=self._console, transient=True
            ) as bar:
                yield from bar.track(iterable, total=total, description=description)
        else:
            yield from self._plain_progress(iterable, total, description)

    def truncate_after(self, step: int) -> None:
        """Forget what an earlier run logged beyond `step`, from which this one goes on."""
        self._times = deque([(step, time.monotonic())], maxlen=RATE_WINDOW)
        self._purge_step = step + 1
        path = self._directory / "metrics.jsonl" if self._directory else None
        if path is None or not path.exists():
            return
        kept = [
            line for line in path.read_text(encoding="utf-8").splitlines() if _until(line, step)
        ]
        write_file(path, "".join(f"{line}\n" for line in kept))

    def close(self) -> None:
        """Write out what TensorBoard still holds back."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

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
        line = json.dumps({"kind": kind, "step": step, **values})
        with (self._directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        writer = self._tensorboard(self._directory)
        for name, value in numbers.items():
            writer.add_scalar(f"{kind}/{name}", value, step)

    def _tensorboard(self, directory: Path) -> "SummaryWriter":
        if self._writer is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow, where installed, chats
            from torch.utils.tensorboard import SummaryWriter  # takes a second or more

            self._writer = SummaryWriter(str(directory), purge_step=self._purge_step)
        return self._writer


def _written(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in values.items()]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _until(line: str, step: int) -> bool:
    """Whether a line is whole (a killed run may leave half of one) and not beyond `step`."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except json.JSONDecodeError:
        return False
