"""Training beside busy processes, by how long OpenMP's threads spin while they wait.

A thread that spins keeps the core that another process, or its own team's last thread, waits for.
One that sleeps at once is slow to wake where cores are free. `GOMP_SPINCOUNT` is read when torch is
loaded, so each count has a process of its own, which computes when it is asked to.
"""

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from detection.commands.schemas import SCHEMAS
from detection.commands.tasks import build_task
from detection.config import DetectionConfig
from engine.cli import SPIN_COUNT
from engine.config import load_config
from engine.distributed import pick_device
from engine.loader import read_batches, split_batches, training_batches
from engine.memory import keep_freed_memory
from engine.schema import LoaderConfig
from tools.lab.benchmarks.measure import Row, tell_round
from tools.lab.benchmarks.settings import Settings
from tools.lab.benchmarks.steps import our_step

NUM_BUSY = 8
COUNTS = (None, "0", "1000", "3000", "10000", "30000")  # None: OpenMP's own, 300,000
ALONE_STEPS = 20
"""Steps of each training in a round, one at a time in turn: what they differ by is less than what
the machine's speed changes by in a few seconds."""
SECONDS = 6.0
"""Of a training beside busy processes, in a round."""
READY = "ready\n"
ROOT = Path(__file__).resolve().parents[2]

Rates = dict[str | None, list[float]]


def busy(settings: Settings) -> list[Row]:
    """Measure the demo's training by spin count, against OpenMP's own, alone and beside others.

    Beside `NUM_BUSY` busy processes the fair share of a training with as many threads as there are
    cores is threads / (threads + busy) of its speed alone.
    """
    chosen = str(SPIN_COUNT)
    counts = list(dict.fromkeys((None, chosen) if settings.small else (*COUNTS, chosen)))
    steps, seconds = (2, 0.2) if settings.small else (ALONE_STEPS, SECONDS)
    alone: Rates = {count: [] for count in counts}
    beside: Rates = {count: [] for count in counts}
    with ExitStack() as stack:
        trainings = {count: stack.enter_context(_training(count, settings)) for count in counts}
        for number in range(settings.rounds):
            started = time.perf_counter()
            for step in range(steps):
                for count in counts if step % 2 else counts[::-1]:
                    alone[count].append(_rate(trainings[count], seconds=0))
            with _busy_processes(NUM_BUSY):
                for count, training in trainings.items():
                    beside[count].append(_rate(training, seconds))
            tell_round(number + 1, settings.rounds, time.perf_counter() - started, settings.say)
    return [
        row for count in counts for row in _rows(count, alone, beside, is_chosen=count == chosen)
    ]


def _rows(count: str | None, alone: Rates, beside: Rates, *, is_chosen: bool) -> list[Row]:
    cores = len(os.sched_getaffinity(0))
    fair = statistics.median(alone[None]) * cores / (cores + NUM_BUSY)
    ratios = [ours / own for ours, own in zip(alone[count], alone[None], strict=True)]
    # 1.25: of a median's standard error to a mean's
    error = 1.25 * statistics.stdev(ratios) / math.sqrt(len(ratios))
    name = "OpenMP's own spinning" if count is None else f"GOMP_SPINCOUNT={count}"
    return [
        Row(
            f"{name}, alone",
            statistics.median(ratios),
            "x",
            0.98 if is_chosen else None,
            detail=f"median of {len(ratios)} steps, ±{error:.3f}; {_said(alone[count])}",
        ),
        Row(
            f"{name}, beside {NUM_BUSY} busy processes, of the fair share",
            100 * statistics.median(beside[count]) / fair,
            "%",
            100 / 3 if is_chosen else None,
            detail=_said(beside[count]),
        ),
    ]


def _said(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.3g} images/s, {min(rates):.3g} to {max(rates):.3g}"


@contextmanager
def _training(count: str | None, settings: Settings) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that trains the demo for as many seconds as each line it is sent says."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if count is not None:
        environment["GOMP_SPINCOUNT"] = count
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{_PROGRAM}"],
        cwd=settings.folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != READY:
                raise RuntimeError("a training ended before its first step; see what it wrote")
            yield process
        finally:
            process.kill()


_PROGRAM = "from tools.lab.benchmarks.busy import train_as_asked; train_as_asked()"


def _rate(training: "subprocess.Popen[str]", seconds: float) -> float:
    assert training.stdin is not None
    assert training.stdout is not None
    training.stdin.write(f"{seconds}\n")
    training.stdin.flush()
    return float(training.stdout.readline())


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 0.0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train_as_asked() -> None:
    """Train the demo for as many seconds as each line of the input says; print the images/s.

    A step at the least, always on the same batch: reading is not what is measured.
    """
    keep_freed_memory()  # as training commands do
    few = ["data.demo.num_train=64", "data.demo.num_val=8", "loop.precision=fp32"]
    config = load_config(ROOT / "configs/detection/demo.yaml", few, schemas=SCHEMAS)
    assert isinstance(config, DetectionConfig)
    task = build_task(config)
    device = pick_device("cpu")
    step = our_step(task, config.loop, device=device)
    data, size = task.train_data(), config.loop.batch_size
    plan = training_batches(data.groups, batch_size=size, seed=0)
    parts = split_batches(data, plan, rank=0, world_size=1, accumulate=1)
    reading = LoaderConfig(workers=0)
    loaded = next(read_batches(data, parts, config=reading, device=device, substitute=True))
    batch = loaded.batch
    assert batch is not None

    def trained(seconds: float) -> float:
        begun, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - begun < seconds:
            step(batch)
            count += size
        return count / (time.perf_counter() - begun)

    trained(1.0)
    sys.stdout.write(READY)
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(f"{trained(float(line))}\n")
        sys.stdout.flush()
