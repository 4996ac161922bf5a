"""One command line under `torchrun --max-restarts` whose workers are killed, and end as if not."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from engine.checkpoint import read_safetensors
from engine.log import read_metrics
from tests.cli.conftest import write_site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers in /proc"),
]
TRAIN = Path(__file__).resolve().parents[2] / "tools" / "train_det.py"
STEPS = 8


def start(folder: Path) -> subprocess.Popen[str]:
    """Start the command line; the same in every test."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--max-restarts=3", "--nproc-per-node=2", "--monitor-interval=0.1"]
    training = [str(TRAIN), "tiny.yaml", "--output", "run", "--auto-resume", "--device", "cpu"]
    training += [f"loop.max_steps={STEPS}", "loop.checkpoint_every=1", "loop.ema_decay=0.9"]
    training += ["loop.collective_timeout_s=60"]
    return subprocess.Popen(
        [*torchrun, *training],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def worker(torchrun: int, rank: int) -> int:
    """Return the process id of a worker."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    for child in map(int, children):
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return child
    raise LookupError(f"no worker of rank {rank}")


def output_of(process: subprocess.Popen[str], signals: dict[int, Callable[[], None]]) -> str:
    """Return the output of a job; `signals[step]` is called when that step is logged."""
    left, lines = dict(signals), []
    assert process.stdout is not None
    try:
        with process.stdout as stdout:
            for line in stdout:
                lines.append(line)
                if (found := re.match(r"step (\d+)/", line)) and int(found[1]) in left:
                    left.pop(int(found[1]))()
        process.wait(timeout=60)
    finally:
        if process.poll() is None:  # it hangs: torchrun ends its workers, then itself
            process.terminate()
            process.wait(timeout=60)
            sys.stdout.writelines(lines)  # for pytest's report
    assert left == {}, "".join(lines)
    return "".join(lines)


def losses(folder: Path) -> list[tuple[str, int, float | None]]:
    """Return kind, step and loss of each line of the run's metrics.jsonl."""
    records, damaged = read_metrics(folder / "run" / "metrics.jsonl")
    assert damaged == 0
    return [(each["kind"], each["step"], each.get("loss")) for each in records]


def assert_same_end(folder: Path, expected: Path) -> None:
    """Assert that two runs left the same weights, bit for bit, the same log and no other folder."""
    found, whole = (read_safetensors(each / "run/model.safetensors") for each in (folder, expected))
    torch.testing.assert_close(found[0], whole[0], rtol=0, atol=0)
    assert found[1] == whole[1]
    assert losses(folder) == losses(expected)
    assert sorted(path.name for path in folder.iterdir()) == ["data", "run", "tiny.yaml"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the command line ran without a kill."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_site(folder)
    process = start(folder)
    output = output_of(process, {})
    assert process.returncode == 0, output
    assert "no checkpoint to resume from: starting a new run" in output
    assert "resumed at" not in output
    return folder


def test_two_killed_workers_change_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    write_site(tmp_path)
    process = start(tmp_path)

    def kill(rank: int) -> None:
        os.kill(worker(process.pid, rank), signal.SIGKILL)

    output = output_of(process, {3: partial(kill, 1), 6: partial(kill, 0)})
    assert process.returncode == 0, output
    first, second = map(int, re.findall(r"resumed at step (\d+)", output))  # exactly two restarts
    assert 2 <= first <= 4
    assert 5 <= second <= 7
    assert_same_end(tmp_path, uninterrupted)


def test_sigterm_to_torchrun_saves_and_the_same_line_goes_on(
    uninterrupted: Path, tmp_path: Path
) -> None:
    write_site(tmp_path)
    process = start(tmp_path)
    output = output_of(process, {3: process.terminate})
    assert process.returncode not in (0, None)
    stopped = int(re.findall(r"interrupted at step (\d+); continue with --resume", output)[0])
    assert losses(tmp_path)[-1][1] == stopped
    process = start(tmp_path)
    output = output_of(process, {})
    assert process.returncode == 0, output
    assert f"resumed at step {stopped}\n" in output
    assert_same_end(tmp_path, uninterrupted)
