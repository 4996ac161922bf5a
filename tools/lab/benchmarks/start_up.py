"""How long commands take until they have done something: imports, data, network, the first work."""

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
    """Start the demo's training, up to the end of its first step, and predict on one image.

    Files are in the system's cache and the demo's images are there, as from the second time on.
    """
    words = ["loop.log_every=1", *(SMALL if settings.small else ())]
    training = [sys.executable, str(TOOLS / "train_det.py"), *words, "--output"]
    settings.say("training for one step, for a run to predict with")
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
    """Run a command until it prints a line, and return the seconds that it took.

    Args:
        start: how the line begins; the command is then asked to stop (SIGTERM). Empty: until the
            command ends.
        command: program and arguments.
        folder: where it is run.

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
            if start and line.startswith(start):
                seconds = time.perf_counter() - begun
                process.terminate()
                process.communicate()
                return seconds
    seconds = time.perf_counter() - begun
    if start or process.returncode:
        said = "".join(lines[-5:])
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}: {said}")
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
