"""Experiment tracking: what is sent, and trackers that fail, hang or crash."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import tracker_process, tracking
from engine.errors import DivergedError, UserError
from engine.log import RunLog
from engine.tracking import Tracking, check_tracker
from engine.trainer import fit
from tests.conftest import REPOSITORY
from tests.engine.test_trainer import config, lines, weights
from tests.engine.toy import ToyData, ToyTask

# A package named wandb whose calls are written to calls.jsonl, with the fault of FAKE_FAULT.
FAKE = """
import atexit, json, os, sys, threading, time

FAULT = os.environ.get("FAKE_FAULT", "")

def act(name, **values):
    with open(os.environ["FAKE_CALLS"], "a") as file:
        file.write(json.dumps({"call": name, **values}) + "\\n")
    if FAULT == f"{name} raises":
        raise RuntimeError("no\\nnetwork")
    if FAULT == f"{name} hangs":
        time.sleep(1000)
    if FAULT == f"{name} exits":
        raise SystemExit("not logged in")
    if FAULT == f"{name} crashes":
        os._exit(9)
    if FAULT == f"{name} ends":
        os._exit(0)
    if FAULT == f"{name} reads":
        sys.stdin.read()

act("import")
if FAULT == "exit hook hangs":
    atexit.register(time.sleep, 1000)
if FAULT == "thread stays":
    threading.Thread(target=time.sleep, args=[1000]).start()
print("printed by the package")

class Settings:
    def __init__(self, **values):
        pass

class Image:
    def __init__(self, pixels):
        self.value = int(pixels[0, 0, 0])

class Run:
    url = "https://example.org/r1"

    def define_metric(self, name, step_metric):
        pass

    def log(self, values):
        values = {k: v.value if isinstance(v, Image) else v for k, v in values.items()}
        act("log", values=values)

    def finish(self, exit_code):
        act("finish", exit_code=exit_code)

def init(*, id, config, **others):
    act("init", id=id, config=config)
    run = Run()
    run.id = id or "r1"
    return run
"""
FAULTS = [
    f"{call} {fault}"
    for call in ("import", "init", "log", "finish")
    for fault in ("raises", "hangs", "exits", "crashes", "ends")
] + ["exit hook hangs", "thread stays"]
QUICK = ("", "log raises", "finish hangs")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the fake package, and the name of the file of its calls."""
    (tmp_path / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls.jsonl"))
    return tmp_path / "calls.jsonl"


def calls(path: Path, name: str) -> list[dict[str, Any]]:
    return [each for each in map(json.loads, path.read_text().splitlines()) if each["call"] == name]


def untimed(output: Path) -> list[dict[str, Any]]:
    timings = {"images_per_second", "data_wait"}
    return [
        {name: value for name, value in line.items() if name not in timings}
        for kind in ("train", "eval", "final")
        for line in lines(output, kind)
    ]


def test_config_numbers_and_images_are_sent(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(eval_every=6, drawn_images=2, tracker="wandb")
    fit(ToyTask(), settings, output=tmp_path / "run")
    (init,) = calls(fake, "init")
    assert init["config"] == settings.model_dump(mode="json")
    sent = [each["values"] for each in calls(fake, "log")]
    images = [each for each in sent if any(name.startswith("predictions/") for name in each)]
    assert images == [
        {"step": step, f"predictions/{index}": 128} for step in (6, 12) for index in (0, 1)
    ]
    # numbers as in metrics.jsonl, in the same order
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    logged = [json.loads(line) for line in text.splitlines()]
    kinds = ["train", "train", "eval", "train", "train", "eval", "final"]
    assert [line.pop("kind") for line in logged] == kinds
    expected = [
        {name if name == "step" else f"{kind}/{name}": value for name, value in line.items()}
        for kind, line in zip(kinds, logged, strict=True)
    ]
    assert [each for each in sent if each not in images] == expected
    assert calls(fake, "finish") == [{"call": "finish", "exit_code": 0}]
    said = capsys.readouterr().out
    assert "loop.tracker=wandb: run r1 at https://example.org/r1\n" in said
    assert said.splitlines()[-1] == "loop.tracker=wandb: 11 of 11 records sent"
    assert "printed by the package" not in said
    assert "printed by the package" in (tmp_path / "run" / "tracker.log").read_text()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[] if fault in QUICK else [pytest.mark.extended])
        for fault in ("", *FAULTS)
    ],
)
def test_broken_tracker_changes_nothing(
    tmp_path: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr(tracking, "FINISH_S", 1)
    fit(ToyTask(), config(eval_every=4), output=tmp_path / "without")
    monkeypatch.setenv("FAKE_FAULT", fault)
    started = time.monotonic()
    fit(ToyTask(), config(eval_every=4, tracker="wandb"), output=tmp_path / "with")
    assert time.monotonic() - started < 10
    torch.testing.assert_close(
        weights(tmp_path / "with"), weights(tmp_path / "without"), rtol=0, atol=0
    )
    assert untimed(tmp_path / "with") == untimed(tmp_path / "without")
    said = [line for line in capsys.readouterr().out.splitlines() if "loop.tracker=" in line]
    problems = [line for line in said if "the run continues" in line]
    assert len(problems) <= 2  # such as: log hangs, and then there is no answer to finish
    assert bool(problems) == bool(fault)
    assert " records sent" in said[-1]
    assert (", 0 dropped" not in said[-1]) or "failed" in said[-1]


def waiting_bytes(tracker: Tracking) -> int:
    return tracker._queued_bytes - tracker._written_bytes


def tracked(output: Path, said: list[str]) -> Tracking:
    return Tracking("wandb", config(tracker="wandb"), output, say=said.append)


@pytest.mark.parametrize(
    ("fault", "problem", "counts"),
    [
        ("init raises", "start failed: RuntimeError: no network", "0 of 9 records sent, 0 failed"),
        ("init exits", "start failed: SystemExit: not logged in", "0 of 9 records sent, 0 failed"),
        ("log raises", "scalars failed: RuntimeError: no network", "0 of 9 records sent, 9 failed"),
        ("log crashes", "its process ended with code 9", "0 of 9 records sent, 0 failed"),
        ("import ends", "its process ended with code 0", "0 of 9 records sent, 0 failed"),
        ("log ends", "its process ended with code 0", "0 of 9 records sent, 0 failed"),
        ("finish ends", "its process ended with code 0", "9 of 9 records sent"),
        ("log hangs", "did not finish within 1 s", "0 of 9 records sent, 0 failed"),
        ("finish raises", "finish failed: RuntimeError: no network", "9 of 9 records sent"),
    ],
)
def test_problem_is_said_once_with_counts_at_the_end(
    tmp_path: Path,
    fake: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    problem: str,
    counts: str,
) -> None:
    monkeypatch.setattr(tracking, "FINISH_S", 1)
    monkeypatch.setenv("FAKE_FAULT", fault)
    said: list[str] = []
    tracker = tracked(tmp_path, said)
    for step in range(9):
        tracker.scalars(step, {"loss": 1.0})
        time.sleep(0.05)
    assert tracker._process is not None
    assert fault != "log hangs" or os.getsid(tracker._process.pid) != os.getsid(0)
    tracker.finish(completed=True)
    assert tracker._process.returncode is not None
    first = "loop.tracker=wandb: "
    end = f"; the run continues; see {tmp_path / 'tracker.log'}"
    assert [line for line in said if line.endswith(end)] == [f"{first}{problem}{end}"]
    assert said[-1].startswith(f"{first}{counts}")


@pytest.mark.parametrize("number", [0, 1], ids=["writing", "reading"])
def test_thread_that_cannot_be_started_does_not_end_the_run(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def start_some(thread: threading.Thread) -> None:
        if len(started) == number:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_some)
        tracker = tracked(tmp_path, said)
    for thread in started:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started)
    tracker.scalars(1, {"loss": 1.0})
    tracker.finish(completed=True)
    assert [line.partition(";")[0] for line in said] == [
        "loop.tracker=wandb: cannot be started: can't start new thread",
        "loop.tracker=wandb: 0 of 1 records sent, 0 failed, 1 dropped",
    ]


@pytest.mark.parametrize("fault", ["import reads", "log reads"])
def test_package_that_reads_standard_input_gets_no_calls(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("FAKE_FAULT", fault)
    said: list[str] = []
    tracker = tracked(tmp_path, said)
    for step in range(9):
        tracker.scalars(step, {"loss": 1.0})
    tracker.finish(completed=True)
    assert said[-1] == "loop.tracker=wandb: 9 of 9 records sent"
    assert calls(fake, "finish") == [{"call": "finish", "exit_code": 0}]


def test_records_for_a_tracker_that_hangs_are_dropped_and_cost_no_time(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FINISH_S", 0.2)
    monkeypatch.setattr(tracking, "LATE_S", 0.0)
    monkeypatch.setattr(tracking, "MAX_WAITING", 500_000)
    monkeypatch.setenv("FAKE_FAULT", "log hangs")
    said: list[str] = []
    tracker = tracked(tmp_path, said)
    started = time.monotonic()
    for step in range(100):
        tracker.image(step, "predictions/0", np.zeros((100, 100, 3), np.uint8))
    assert time.monotonic() - started < 1
    assert 500_000 < waiting_bytes(tracker) < 600_000
    tracker.finish(completed=False)
    assert time.monotonic() - started < 3
    assert "no answer for 0 s; the run continues" in said[0]
    assert said[-1] == "loop.tracker=wandb: 0 of 100 records sent, 0 failed, 100 dropped"


def test_slow_tracker_loses_only_what_was_dropped(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "MAX_WAITING", 500_000)
    said: list[str] = []
    tracker = tracked(tmp_path, said)
    for step in range(100):  # faster than the process starts
        tracker.image(step, "predictions/0", np.zeros((100, 100, 3), np.uint8))
    tracker.finish(completed=True)
    (dropped,) = re.findall(r": (\d+) of 100 records sent, 0 failed, (\d+) dropped", said[-1])
    assert sum(map(int, dropped)) == 100
    assert len(calls(fake, "log")) == int(dropped[0])
    assert [line for line in said if "is behind, records are dropped" in line] == said[:1]


def test_resumed_run_continues_the_run_of_the_tracker(tmp_path: Path, fake: Path) -> None:
    output = tmp_path / "run"
    fit(ToyTask(), config(max_steps=6, tracker="wandb"), output=output)
    assert json.loads((output / "tracker.json").read_text()) == {"wandb": "r1"}
    (output / "tracker.json").write_text('{"wandb": "r7"}')
    fit(ToyTask(), config(tracker="wandb"), output=output, resume=True)
    assert [each["id"] for each in calls(fake, "init")] == [None, "r7"]
    # finished: nothing to track
    fit(ToyTask(), config(tracker="wandb"), output=output, resume=True)
    assert len(calls(fake, "init")) == 2


@pytest.mark.parametrize("text", ["", "[1]", '{"mlflow": "r7"}'])
def test_other_or_damaged_id_starts_a_new_run(tmp_path: Path, fake: Path, text: str) -> None:
    (tmp_path / "tracker.json").write_text(text)
    said: list[str] = []
    tracked(tmp_path, said).finish(completed=True)
    assert [each["id"] for each in calls(fake, "init")] == [None]
    assert any("tracker.json: expected" in line for line in said) == ("mlflow" not in text)


def test_run_that_fails_or_is_interrupted_is_not_completed(tmp_path: Path, fake: Path) -> None:
    with pytest.raises(DivergedError):
        fit(
            ToyTask(ToyData(poison=range(24))),
            config(tracker="wandb", max_bad_steps=3),
            output=tmp_path / "run",
        )
    assert [each["exit_code"] for each in calls(fake, "finish")] == [1]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from engine import tracker_process
from tests.engine.test_tracking import tracked, waiting_bytes
folder = Path(sys.argv[1])
tracker_process.__file__ = str(folder / "tracker_process.py")
tracker = tracked(folder, [])
tracker.scalars(3, {"loss": 1.0})
while waiting_bytes(tracker): pass
print(tracker._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.extended
@pytest.mark.parametrize("fault", ["", "init hangs"])
def test_process_ends_after_a_killed_run(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("FAKE_FAULT", fault)
    source = Path(tracker_process.__file__).read_text()
    assert "\nFINISH_S = 20\n" in source
    (tmp_path / "tracker_process.py").write_text(source.replace("FINISH_S = 20", "FINISH_S = 1"))
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(REPOSITORY)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    deadline = time.monotonic() + 10
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(int(killed.stdout), 0)
            time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(killed.stdout), 0)
    if not fault:
        assert [each["values"]["loss"] for each in calls(fake, "log")] == [1.0]
        assert [each["exit_code"] for each in calls(fake, "finish")] == [1]


def test_other_processes_do_not_track(tmp_path: Path, fake: Path) -> None:
    log = RunLog(tmp_path, is_main=False)
    log.track(config(tracker="wandb"))
    log.close()
    assert not fake.exists()


def test_missing_package_is_an_error_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # wandb's own folder of runs is no package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(
        UserError, match=r"loop.tracker=wandb: expected the package wandb .*\[track"
    ):
        fit(ToyTask(), config(tracker="wandb"), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_tracker("none")
