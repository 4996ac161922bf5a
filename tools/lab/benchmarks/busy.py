"""Benchmark: training speed next to other busy processes, for several OpenMP spin counts.

OpenMP threads that wait either spin or sleep. A spinning thread occupies a core that another
process, or the slowest thread of its own team, needs. A sleeping thread wakes up slowly, which
costs time if cores are free. `GOMP_SPINCOUNT` says how long to spin. It is read when torch is
loaded, so each count is measured in a separate process, which trains on request.
"""

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from detection.commands.schemas import SCHEMAS
from detection.commands.tasks import build_task
from detection.config import DetectionConfig
from engine.cli import SPIN_COUNT
from engine.config import load_config
from engine.distributed import pick_device
from engine.loader import read_batches, split_batches, training_batches
from engine.memory import keep_freed_memory
from engine.schema import LoaderConfig
from tools.lab import REPOSITORY
from tools.lab.benchmarks.measure import Row, log_round
from tools.lab.benchmarks.settings import Settings
from tools.lab.benchmarks.steps import our_step

NUM_BUSY = 8
COUNTS = (None, "0", "1000", "3000", "10000", "30000")  # None: OpenMP's default, 300,000
ALONE_STEPS = 20
"""Steps of each process in a round. The processes take turns after every step, because the speed of
the machine changes within seconds by more than the spin counts differ."""
SECONDS = 6.0
"""Duration of a training next to busy processes, in a round."""
READY = "ready\n"

Rates = dict[str | None, list[float]]


def busy(settings: Settings) -> list[Row]:
    """Measure the demo's training for each spin count, alone and next to busy processes.

    Alone, the speed is compared with that of OpenMP's default count. Next to `NUM_BUSY` busy
    processes it is compared with the fair share: a training with one thread per core should keep
    cores / (cores + NUM_BUSY) of its speed alone.
    """
    chosen = str(SPIN_COUNT)  # the count that the commands set
    counts = list(dict.fromkeys((None, chosen) if settings.small else (*COUNTS, chosen)))
    steps, seconds = (2, 0.2) if settings.small else (ALONE_STEPS, SECONDS)
    alone: Rates = {count: [] for count in counts}
    beside: Rates = {count: [] for count in counts}
    with ExitStack() as stack:
        trainings = {count: stack.enter_context(_training(count, settings)) for count in counts}
        for number in range(settings.rounds):
            started = time.perf_counter()
            for step in range(steps):
                # alternate the order, so that no process always runs after the same one
                for count in counts if step % 2 else counts[::-1]:
                    alone[count].append(_images_per_second(trainings[count], seconds=0))
            with _busy_processes(NUM_BUSY):
                for count, training in trainings.items():
                    beside[count].append(_images_per_second(training, seconds))
            log_round(number + 1, settings.rounds, time.perf_counter() - started, settings.log)
    return [
        row for count in counts for row in _rows(count, alone, beside, is_chosen=count == chosen)
    ]


def _rows(count: str | None, alone: Rates, beside: Rates, *, is_chosen: bool) -> list[Row]:
    cores = len(os.sched_getaffinity(0))
    # NUM_BUSY processes and one thread per core share the cores equally
    fair = statistics.median(alone[None]) * cores / (cores + NUM_BUSY)
    # step by step, because the machine's speed drifts
    ratios = [ours / own for ours, own in zip(alone[count], alone[None], strict=True)]
    # the standard error of a median is about 1.25 times that of a mean
    error = 1.25 * statistics.stdev(ratios) / math.sqrt(len(ratios))
    name = "OpenMP's own spinning" if count is None else f"GOMP_SPINCOUNT={count}"
    return [
        Row(
            f"{name}, alone",
            statistics.median(ratios),
            "x",
            0.98 if is_chosen else None,
            detail=f"median of {len(ratios)} steps, ±{error:.3f}; {_summary(alone[count])}",
        ),
        Row(
            f"{name}, beside {NUM_BUSY} busy processes, of the fair share",
            100 * statistics.median(beside[count]) / fair,
            "%",
            100 / 3 if is_chosen else None,
            detail=_summary(beside[count]),
        ),
    ]


def _summary(rates: Sequence[float]) -> str:
    """Return the median and the range of some speeds."""
    return f"{statistics.median(rates):.3g} images/s, {min(rates):.3g} to {max(rates):.3g}"


@contextmanager
def _training(count: str | None, settings: Settings) -> Iterator["subprocess.Popen[str]"]:
    """Start a training process; it trains for the number of seconds in each line of its input."""
    # a count of the user's environment must not reach the process
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if count is not None:
        environment["GOMP_SPINCOUNT"] = count
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{_WORKER_PROGRAM}",
        ],
        cwd=settings.folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != READY:
                raise RuntimeError(
                    "a training process ended before its first step; see its output above"
                )
            yield process
        finally:
            process.kill()


_WORKER_PROGRAM = "from tools.lab.benchmarks.busy import train_on_request; train_on_request()"


def _images_per_second(training: "subprocess.Popen[str]", seconds: float) -> float:
    assert training.stdin is not None
    assert training.stdout is not None
    training.stdin.write(f"{seconds}\n")
    training.stdin.flush()
    return float(training.stdout.readline())


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    """Run `count` processes that each keep a core busy."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 0.0)  # until they have started
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train_on_request() -> None:
    """Train the demo for the number of seconds in each line of the input; print the images/s.

    At least one step is taken. All steps use the same batch, because reading is not measured here.
    """
    keep_freed_memory()  # as training commands do
    overrides = ["data.demo.num_train=64", "data.demo.num_val=8", "loop.precision=fp32"]
    config = load_config(REPOSITORY / "configs/detection/demo.yaml", overrides, schemas=SCHEMAS)
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
        """Train for at least `seconds` and one step; return the images per second."""
        begun, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - begun < seconds:
            step(batch)
            count += size
        return count / (time.perf_counter() - begun)

    trained(1.0)  # warm-up
    sys.stdout.write(READY)
    sys.stdout.flush()
    # one request per line, answered by one line; ends when the parent closes the pipe or kills it
    for line in sys.stdin:
        sys.stdout.write(f"{trained(float(line))}\n")
        sys.stdout.flush()
