"""Starts runs by forking a process that has imported all that they need.

As a program it reads a launch as JSON from each line of its input and answers with a line. `Server`
is the other end.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 120.0
"""Seconds after which a launch hangs."""
PEERS_S = 3.0
"""Seconds that the other processes have to notice that one failed, before SIGTERM as torchrun's."""
STOP_S = 12.0
"""Seconds from then to SIGKILL."""
ORPHANS_S = 9.0
"""Seconds that a run's reading processes may outlive it: they look for it every 5."""


@dataclass(frozen=True)
class Launch:
    """A command to run.

    case: a key of `jobs.CASES`.
    folder: the working directory.
    output: the run folder.
    notes: folder for the processes' streams and for what was struck.
    processes: 1, or as many as torchrun would start.
    trace: write the points that were passed to `notes`.
    """

    case: str
    folder: str
    output: str
    notes: str
    processes: int = 1
    resume: bool = False
    history: bool = False
    trace: bool = False
    fault: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a launch ended.

    codes: of each process, negative for a signal.
    group: the process group that they were in.
    ended: time.monotonic() when the last one was gone.
    hung: what had to be stopped by force, or nothing.
    outs, errs: what each process wrote.
    """

    codes: list[int]
    group: int
    ended: float
    hung: str
    outs: list[str]
    errs: list[str]


IMPORTED = (
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
    "multiprocessing.popen_fork",
    "multiprocessing.queues",
    "multiprocessing.synchronize",
    "tests.faults.jobs",
    "tests.faults.points",
    "torch._dynamo",
    "torch.distributed.nn",
    "torch.nn.parallel",
    "torch.utils.serialization.config",
    "torch.utils.tensorboard",
)
"""What a run of the toy imports while it goes."""
IMPORTED_BY_DETECTOR = (
    "albumentations",
    "backbones.plots",
    "detection.commands.schemas",
    "detection.tasks.detection",
    "hotcoco",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "scipy.special",
)


class Server:
    """A process that forks runs; one launch at a time."""

    def __init__(self, *, detector: bool = True) -> None:
        """Start it; `detector`: whether runs of the detector are asked for."""
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        place = {"PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", *(["detector"] if detector else [])],
            cwd=REPOSITORY,
            env=os.environ | threads | place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the one who asked, not for its runs
        )

    def launch(self, launch: Launch) -> Outcome:
        """Run a command to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(launch)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        notes = Path(launch.notes)
        outs, errs = (
            [
                (notes / f"{stream}{rank}.txt").read_text(errors="replace")
                for rank in range(launch.processes)
            ]
            for stream in ("out", "err")
        )
        return Outcome(**answer, outs=outs, errs=errs)

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


def left_over(outcome: Outcome) -> list[str]:
    """Return the processes of a launch that outlived it by `ORPHANS_S`, and end them."""
    while members := _members(outcome.group):
        if time.monotonic() > outcome.ended + ORPHANS_S:
            os.killpg(outcome.group, signal.SIGKILL)
            return members
        time.sleep(0.05)
    return []


def _members(group: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = path.read_text(errors="replace").rsplit(")", 1)
            state, _, owner = rest.split()[:3]
            if int(owner) == group and state != "Z":
                found.append(name.replace("(", ""))
    return found


def _serve() -> Callable[[], None] | None:
    """Answer launches; returns None at the end of the input, and in a forked process its work."""
    while line := sys.stdin.readline():
        launch = Launch(**json.loads(line))
        # threads do not live on in a forked process, and whoever waits for them never wakes
        assert len(list(Path("/proc/self/task").iterdir())) == 1
        port = str(_free_port())
        pids: list[int] = []
        for rank in range(launch.processes):
            pid = os.fork()
            if pid == 0:
                return _start(launch, rank, group=pids[0] if pids else 0, port=port)
            pids.append(pid)
            os.setpgid(pid, pids[0])
        codes, hung = _wait(pids)
        answer = {"codes": codes, "group": pids[0], "ended": time.monotonic(), "hung": hung}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _start(launch: Launch, rank: int, *, group: int, port: str) -> Callable[[], None]:
    with contextlib.suppress(OSError):  # the server does so too, whoever is first
        os.setpgid(0, group)
    notes = Path(launch.notes)
    streams = (Path("/dev/null"), notes / f"out{rank}.txt", notes / f"err{rank}.txt")
    for number, path in enumerate(streams):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
        descriptor = os.open(path, flags, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(launch.folder)
    if launch.processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port}
        size = str(launch.processes)
        os.environ |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}

    from tests.faults import jobs
    from tests.faults.points import Fault, Points, install

    fault = None if launch.fault is None else Fault(**launch.fault)
    hurt = fault is not None and fault.rank == rank
    points = Points(Path(launch.output), fault if hurt else None, notes)
    if launch.trace:
        points.write_trace(notes / f"trace{rank}.json")
    install(points)
    return functools.partial(
        jobs.run,
        jobs.CASES[launch.case],
        Path(launch.output),
        resume=launch.resume,
        history=launch.history,
        loaded=points.loaded,
    )


def _wait(pids: list[int]) -> tuple[list[int], str]:
    """Wait for all; when one fails, end the others as torchrun does."""
    codes: dict[int, int] = {}
    started = time.monotonic()
    failed, hung = 0.0, ""
    asked = False
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    failed = failed or (time.monotonic() if codes[pid] else 0.0)
        waited = time.monotonic() - failed if failed else 0.0
        alive = [pid for pid in pids if pid not in codes]
        if waited > PEERS_S and not asked:
            asked = True
            _send(alive, signal.SIGTERM)
        if alive and (waited > PEERS_S + STOP_S or time.monotonic() - started > LIMIT_S):
            hung = (
                f"{len(alive)} of {len(pids)} processes, after {time.monotonic() - started:.0f} s"
            )
            _send(alive, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids], hung


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def _import_all(names: Iterable[str]) -> None:
    """Import what runs import while they go, so that none has to."""
    os.environ["MPLBACKEND"] = "agg"
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):  # hotcoco is optional
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def _leave(work: Callable[[], None]) -> NoReturn:
    """Work, then end as the interpreter does, but for the two seconds that it tidies up."""
    code: object = 0
    try:
        work()
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _import_all(IMPORTED + (IMPORTED_BY_DETECTOR if sys.argv[1:] else ()))
    gc.freeze()  # else each process would look through, and so copy, what all share
    work = _serve()
    if work is not None:
        _leave(work)
