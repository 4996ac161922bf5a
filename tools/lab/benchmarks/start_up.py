"""Benchmark: start-up time of commands: imports, data, network, and the first step or image."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.paths import names_in
from tools.lab import REPOSITORY
from tools.lab.benchmarks.measure import Row
from tools.lab.benchmarks.settings import Settings

TOOLS = REPOSITORY / "tools"
SMALL = ("data.demo.num_train=8", "data.demo.num_val=2")


def start_up(settings: Settings) -> list[Row]:
    """Measure the demo's training up to the end of its first step, and a prediction on one image.

    This is the time of a second start: the demo's images exist, and files are in the page cache.
    """
    overrides = ["loop.log_every=1", *(SMALL if settings.small else ())]
    training = [sys.executable, str(TOOLS / "train_det.py"), *overrides, "--output"]
    settings.log("training for one step, to have a run for predict.py")
    seconds_until_line("", [*training, "trained", "loop.max_steps=1"], folder=settings.folder)
    images = settings.folder / "data" / "demo" / "val"
    image = images / names_in(images)[0]
    prediction = [sys.executable, str(TOOLS / "predict.py"), "trained", str(image)]
    steps, predictions = [], []
    for number in range(settings.rounds):
        command = [*training, f"round_{number}"]
        steps.append(seconds_until_line("step 1/", command, folder=settings.folder))
        predictions.append(seconds_until_line("", prediction, folder=settings.folder))
    return [
        _row("train_det.py until the first step of the demo is done", steps, promised=6, aim=4),
        _row("predict.py on one image, from start to end", predictions, promised=4, aim=3),
    ]


def seconds_until_line(start: str, command: Sequence[str], *, folder: Path) -> float:
    """Return the seconds until a command prints a line.

    Args:
        start: start of the line; the command is then terminated (SIGTERM). If empty, the time until
            the command ends is returned.
        command: program and arguments.
        folder: working directory of the command.

    Raises:
        RuntimeError: the command failed, or ended without such a line.
    """
    begun = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if start and line.startswith(start):  # the time counts, not how the command ends
                seconds = time.perf_counter() - begun
                process.terminate()
                process.communicate()
                return seconds
    seconds = time.perf_counter() - begun
    if start or process.returncode:
        output = "".join(lines[-5:])
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}: {output}")
    return seconds


def _row(work: str, seconds: Sequence[float], *, promised: float, aim: float) -> Row:
    return Row(
        work,
        statistics.median(seconds),
        "s",
        promised,
        aim,
        smaller_is_better=True,
        detail=f"{min(seconds):.3g} to {max(seconds):.3g} s",
    )
