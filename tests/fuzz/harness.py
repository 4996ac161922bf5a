"""Fuzzing harness: calls readers with hostile input in forked processes, and judges the outcome.

A call runs as in a command. It may succeed, or fail with one error line and exit code 2. Anything
else is a fault: another exception or exit code, a message that breaks the console, a hang, a crash,
too much memory.
"""

import contextlib
import faulthandler
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from engine.cli import run_command

REPOSITORY = Path(__file__).resolve().parents[2]
SEED = 16
LIMIT_S = 10.0
MEMORY = 3 << 30
"""Bytes of memory that a call may use in addition to those of the process before it."""
LONGEST_MESSAGE = 2000
_STACK_LINE = re.compile(rf'File "{re.escape(str(REPOSITORY))}/(?!tests/)(\S+)", line (\d+)')


class FaultError(Exception):
    """A call succeeded with a wrong result, or should not have succeeded."""


Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One hostile input.

    group: name in the report. label: how the input was changed. calls: names and functions that
    read it; a function returns a short note for the report, or None.
    """

    group: str
    label: str
    calls: Sequence[tuple[str, Call]]


class Kind(Protocol):
    """A kind of input. full, quick: number of cases of the slow and the quick test."""

    name: str
    full: int
    quick: int

    def prepare(self, site: Path, count: int) -> None:
        """Write the files that the first `count` cases share to a new folder."""

    def make(self, rng: random.Random, index: int, case: Path) -> Case:
        """Write a hostile input to the empty folder `case`, the working directory of the calls."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one call.

    result: taken, refused or fault. fault: kind of the fault. where: file:line. note: the short
    note that the call returned. stray: whether something else was written to stderr.
    """

    index: int
    group: str
    label: str
    call: str
    result: str
    fault: str = ""
    where: str = ""
    message: str = ""
    note: str = ""
    stray: bool = False
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return one line."""
        text = f"{self.fault} at {self.where or '?'} ({self.call}): {self.message[:200]!r}"
        return f"case {self.index}: {text}; input: {self.group}: {self.label[:200]!r}"


def run_kind(kind: Kind, count: int, folder: Path) -> list[Outcome]:
    """Run the first `count` cases of a kind; keep the first input of each fault in `folder`."""
    site, kept = folder / "site", folder / "faults"
    for each in (site, kept):
        each.mkdir(parents=True)
    kind.prepare(site, count)
    outcomes: list[Outcome] = []
    seen: set[tuple[str, str, str]] = set()
    start = 0
    while start < count:
        batch, stopped = _watch(kind, range(start, count), folder, limit=LIMIT_S)
        if stopped is not None and stopped.fault == "hang":
            # try again with a longer limit: other processes may have used the processors
            again = range(stopped.index, stopped.index + 1)
            batch = [each for each in batch if each.index != stopped.index]
            second, stopped = _watch(kind, again, folder, limit=6 * LIMIT_S)
            batch += second
            start = again.stop
        elif stopped is not None:
            start = stopped.index + 1
        else:
            start = count
        outcomes += [*batch, *([stopped] if stopped else [])]
    for outcome in outcomes:
        key = (outcome.fault, outcome.where, outcome.message[:20])
        copy = folder / "cases" / str(outcome.index)
        if outcome.fault and key not in seen and copy.exists():
            seen.add(key)
            if not (kept / str(outcome.index)).exists():
                shutil.copytree(copy, kept / str(outcome.index), symlinks=True, copy_function=_copy)
    shutil.rmtree(folder / "cases", ignore_errors=True)
    return outcomes


def _copy(source: str, target: str) -> None:
    if Path(source).is_file():  # neither a FIFO nor a device
        shutil.copy(source, target)


def _watch(
    kind: Kind, indices: range, folder: Path, *, limit: float
) -> tuple[list[Outcome], Outcome | None]:
    """Run cases in a child process.

    Returns:
        the outcomes that the child reports, and the outcome of a call that hung or crashed, if any.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # about a fork of a process with threads
        child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                _child(kind, indices, folder, pipe)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    outcomes: list[Outcome] = []
    started: dict[str, Any] | None = None
    hangs = False
    with os.fdopen(reading) as pipe:
        buffer = ""
        while True:
            timeout = limit if started else 120.0  # between calls, the child writes a case
            ready, _, _ = select.select([pipe], [], [], timeout)
            if not ready:
                hangs = True
                os.kill(child, signal.SIGUSR1)  # write the stack
                time.sleep(0.5)
                os.kill(child, signal.SIGKILL)
                break
            data = os.read(pipe.fileno(), 1 << 16).decode()
            if not data:
                break
            *lines, buffer = (buffer + data).split("\n")
            for line in lines:
                report = json.loads(line)
                if "result" in report:
                    outcomes.append(Outcome(**report))
                    started = None
                else:
                    started = report
    status = os.waitpid(child, 0)[1]
    if started is None:
        assert status == 0, f"{kind.name}: the cases after {outcomes[-1:]} could not be made"
        return outcomes, None
    stack = (folder / "stack.txt").read_text(errors="replace")
    fault = "hang" if hangs else f"crash ({signal.Signals(os.WTERMSIG(status)).name})"
    frame = _STACK_LINE.search(stack)
    where = f"{frame[1]}:{frame[2]}" if frame else ""
    return outcomes, Outcome(**started, result="fault", fault=fault, where=where, seconds=limit)


def _child(kind: Kind, indices: range, folder: Path, pipe: io.TextIOBase) -> None:
    """Run cases, and write a line of JSON to `pipe` before and after each call."""
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stderr = os.open(folder / "stderr.txt", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(stderr, 2)

    def send(report: dict[str, Any]) -> None:
        pipe.write(json.dumps(report) + "\n")
        pipe.flush()

    with (folder / "stack.txt").open("w") as stack:
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGUSR1, stack)
        for index in indices:
            case_folder = folder / "cases" / str(index)
            shutil.rmtree(case_folder, ignore_errors=True)
            case_folder.mkdir(parents=True)
            os.chdir(case_folder)
            rng = random.Random(f"{SEED} {kind.name} {index}")
            case = kind.make(rng, index, case_folder)
            faults = False
            for name, call in case.calls:
                start = {"index": index, "group": case.group, "label": case.label, "call": name}
                send(start)
                os.ftruncate(stderr, 0)
                stack.truncate(0)
                outcome = judge(call, start)
                send(asdict(outcome) | {"stray": os.fstat(stderr).st_size > 0})
                faults |= outcome.result == "fault"
            os.chdir(folder)
            if not faults:
                shutil.rmtree(case_folder)


def judge(call: Call, start: dict[str, Any]) -> Outcome:
    """Run a call as a command does; return its outcome, with the fields in `start`."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2)]
    returned: list[object] = []
    fault = where = message = ""
    code: Any = None
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(streams[0]))
        stack.enter_context(contextlib.redirect_stderr(streams[1]))
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RuntimeWarning)
        try:
            run_command(lambda: returned.append(call()))
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            fault, where, message = type(error).__name__, _where(error), str(error)
    seconds = time.perf_counter() - started
    out, err = (stream.buffer.getvalue().decode() for stream in map(_flushed, streams))  # type: ignore[attr-defined]
    if not fault and code not in (0, 2):
        fault, message = f"exit code {code}", err
    elif not fault and (problem := _console_problem(out, err, code)):
        fault, message = problem, (err if "message" in problem else out)
    elif not fault and warned:
        fault, message = "warning", str(warned[0].message)
        where = f"{_relative(warned[0].filename)}:{warned[0].lineno}"
    result = "fault" if fault else "refused" if code == 2 else "taken"
    note = returned[0] if returned and isinstance(returned[0], str) else ""
    return Outcome(
        **start,
        result=result,
        fault=fault,
        where=where,
        message=message[:4000] or err[:4000],
        note=note,
        seconds=seconds,
    )


def _flushed(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    return stream


def _console_problem(out: str, err: str, code: int) -> str:
    """Return what is wrong with the console output of a call; "" if nothing is."""
    # lines of notes may precede the error line
    *notes, last, rest = err.split("\n") if code == 2 else ("", "error: ", "")
    if not last.startswith("error: ") or rest or any(n.startswith("error: ") for n in notes):
        return "message that is not one line"
    if len(err) > LONGEST_MESSAGE:
        return "message too long"
    for name, text in (("message", err), ("output", out)):
        strange = {c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")} - {"\n"}
        if strange:
            return f"{name} with control characters"
    return ""


def _relative(path: str) -> str:
    return path.removeprefix(f"{REPOSITORY}/")


def _where(error: BaseException) -> str:
    """Return file:line of the innermost frame in this repository's packages, else in tests/."""
    if isinstance(error, FaultError):
        return ""
    frames = [
        (_relative(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(f"{REPOSITORY}/")
        and "/.venv/" not in frame.filename
        and frame.name != run_command.__name__
    ]
    relevant = [frame for frame in frames if not frame[0].startswith("tests/")] or frames
    return f"{relevant[-1][0]}:{relevant[-1][1]}" if relevant else ""


def faults_of(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, int]]:
    """Yield one outcome of each distinct fault, and its number of calls; most frequent first."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.result == "fault":
            groups.setdefault((outcome.fault, outcome.where), []).append(outcome)
    for found in sorted(groups.values(), key=len, reverse=True):
        yield min(found, key=lambda each: len(each.label)), len(found)
