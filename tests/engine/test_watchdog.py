"""The watchdog ends a process that makes no progress, and no other one."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.distributed import World, process_group
from engine.errors import PeerError
from engine.schema import LoaderConfig, LoopConfig, RunConfig
from engine.trainer import fit
from engine.watchdog import ProgressWatchdog
from tests.engine.toy import ToyTask

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")

HANGS = """
import threading, time
from engine.watchdog import ProgressWatchdog

watchdog = ProgressWatchdog("process 1 of 0..3", timeout_s=1)
watchdog.report("step 2")
watchdog.report("step 3")
{hang}
"""

SLOW_BUT_ALIVE = """
import time
from engine.watchdog import ProgressWatchdog

watchdog = ProgressWatchdog("process 1 of 0..3", timeout_s=0.4)
time.sleep(0.6)  # nothing was reported yet
for step in range(6):
    watchdog.report(f"step {step}")
    time.sleep(0.1)
with watchdog.paused():
    with watchdog.paused():
        time.sleep(0.3)
    time.sleep(0.3)
time.sleep(0.1)  # the time starts anew after the pause
watchdog.close()
time.sleep(0.6)
print("done")
"""

HANGS_ON_A_GPU = """
import torch
from engine.watchdog import ProgressWatchdog

torch.cuda._sleep(1)  # starts CUDA, which takes seconds
torch.cuda.synchronize()
watchdog = ProgressWatchdog("process 1 of 0..3", timeout_s=1)
watchdog.report("step 3")
torch.cuda._sleep(10**13)  # about an hour
torch.cuda.synchronize()
"""

TWO_ON_A_CPU = """
from engine.distributed import process_group

with process_group("cpu", timeout_s=60) as world:
    assert world.size == 2 and world.watchdog is None
"""


def run(script: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(launcher or ["-c", script])]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def watchdog_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "progress-watchdog"]


def check_end(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == PeerError.exit_code
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: process 1 of 0..3: no progress for 1 s since step 3: probably another process "
        "ended or does not answer"
    )


@pytest.mark.parametrize("hang", ["time.sleep(100)", "threading.Event().wait()"])
def test_hanging_process_ends_with_one_line(hang: str) -> None:
    started = time.monotonic()
    check_end(run(HANGS.format(hang=hang)))
    assert time.monotonic() - started < 20


@pytest.mark.gpu
def test_process_that_waits_for_its_gpu_ends_with_one_line() -> None:
    check_end(run(HANGS_ON_A_GPU))


def test_process_that_reports_or_pauses_or_closes_goes_on() -> None:
    done = run(SLOW_BUT_ALIVE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_closing_stops_the_thread_at_once() -> None:
    watchdog = ProgressWatchdog("process 0 of 0..1", timeout_s=1000)
    watchdog.report("step 1")
    assert len(watchdog_threads()) == 1
    started = time.monotonic()
    watchdog.close()
    watchdog.close()  # twice does no harm
    assert time.monotonic() - started < 0.4
    assert watchdog_threads() == []


def test_world_without_a_watchdog_ignores_reports() -> None:
    world = World(0, 1, CPU)
    world.report_progress("step 1")
    with world.unwatched():
        pass


def test_one_process_on_a_cpu_has_no_watchdog() -> None:
    with process_group("cpu") as world:
        assert world.watchdog is None
        assert watchdog_threads() == []


@pytest.mark.extended
def test_two_processes_on_a_cpu_have_no_watchdog(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TWO_ON_A_CPU)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = run("", *launcher)
    assert done.returncode == 0, done.stderr


class RecordingWatchdog(ProgressWatchdog):
    """Records what it is told; a pause is recorded as `[` and `]`."""

    def __init__(self) -> None:
        super().__init__("process 0 of 0..0", timeout_s=1000)
        self.told: list[str] = []

    def report(self, what: str) -> None:
        self.told.append(what)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.told.append("[")
        with super().paused():
            yield
        self.told.append("]")


def test_training_reports_steps_and_evaluated_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog = RecordingWatchdog()

    @contextlib.contextmanager
    def watched(_device: str | None, *, timeout_s: int) -> Iterator[World]:
        with contextlib.closing(watchdog):
            yield World(0, 1, CPU, watchdog)

    monkeypatch.setattr("engine.trainer.process_group", watched)
    loop = LoopConfig(max_steps=2, batch_size=4, eval_batch_size=8, checkpoint_every=1)
    config = RunConfig(loader=LoaderConfig(workers=0), loop=loop)
    fit(ToyTask(), config, output=tmp_path / "run")
    # [ ]: paused, for a checkpoint or for the scores
    assert " ".join(watchdog.told) == (
        "step 1 [ ] step 2 [ ] batch 1 of the evaluation batch 2 of the evaluation [ ] [ ]"
    )
