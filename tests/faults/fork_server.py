"""Fork server: starts runs quickly by forking a process that has already imported everything.

As a program it reads a `Launch` as JSON from each line of stdin and answers with a line of JSON.
`Server` is the client.
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
RUN_TIMEOUT_S = 120.0
"""Seconds after which a run counts as hanging."""
PEER_TIMEOUT_S = 3.0
"""Seconds for the other processes to notice that one failed; then SIGTERM, as torchrun sends."""
STOP_TIMEOUT_S = 12.0
"""Seconds from that SIGTERM to SIGKILL."""
ORPHAN_TIMEOUT_S = 9.0
"""Seconds that worker processes may outlive their run: they check for it every 5."""


@dataclass(frozen=True)
class Launch:
    """A command to run.

    case: a key of `jobs.CASES`.
    folder: the working directory.
    output: the run folder.
    logs_folder: folder for the processes' output and the injected point.
    processes: number of processes, as torchrun would start them.
    resume: as `--resume`.
    history: keep a checkpoint of every step.
    trace: write the points to `logs_folder`.
    fault: fields of a `Fault`, or None.
    """

    case: str
    folder: str
    output: str
    logs_folder: str
    processes: int = 1
    resume: bool = False
    history: bool = False
    trace: bool = False
    fault: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a launch ended.

    codes: exit code of each process, negative for a signal.
    group: their process group.
    ended: time.monotonic() when the last one was gone.
    hung: what had to be killed, or "".
    outs, errs: what each process wrote.
    """

    codes: list[int]
    group: int
    ended: float
    hung: str
    outs: list[str]
    errs: list[str]


TOY_MODULES = (
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
    "multiprocessing.popen_fork",
    "multiprocessing.queues",
    "multiprocessing.synchronize",
    "tests.faults.jobs",
    "tests.faults.fault_injection",
    "torch._dynamo",
    "torch.distributed.nn",
    "torch.nn.parallel",
    "torch.utils.serialization.config",
    "torch.utils.tensorboard",
)
"""Modules that a run of the toy task imports late."""
DETECTOR_MODULES = (
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
    """Client of a fork server; one launch at a time."""

    def __init__(self, *, detector: bool = True) -> None:
        """Start the server; `detector`: whether to import what the detector needs."""
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        place = {"PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server", *(["detector"] if detector else [])],
            cwd=REPOSITORY,
            env=os.environ | threads | place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C shall reach the caller, not the runs
        )

    def launch(self, launch: Launch) -> Outcome:
        """Run a command and wait for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(launch)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        logs_folder = Path(launch.logs_folder)
        outs, errs = (
            [
                (logs_folder / f"{stream}{rank}.txt").read_text(errors="replace")
                for rank in range(launch.processes)
            ]
            for stream in ("out", "err")
        )
        return Outcome(**answer, outs=outs, errs=errs)

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


def left_over(outcome: Outcome) -> list[str]:
    """Kill and return the processes that outlived their launch by `ORPHAN_TIMEOUT_S`."""
    while members := _members(outcome.group):
        if time.monotonic() > outcome.ended + ORPHAN_TIMEOUT_S:
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
    """Serve launches. Return None at the end of stdin; in a forked process return its work."""
    while line := sys.stdin.readline():
        launch = Launch(**json.loads(line))
        # threads do not survive a fork, and waiting for them would never end
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
    with contextlib.suppress(OSError):  # the server does the same; either may be first
        os.setpgid(0, group)
    logs_folder = Path(launch.logs_folder)
    streams = (Path("/dev/null"), logs_folder / f"out{rank}.txt", logs_folder / f"err{rank}.txt")
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
    from tests.faults.fault_injection import Fault, Points, install

    fault = None if launch.fault is None else Fault(**launch.fault)
    has_fault = fault is not None and fault.rank == rank
    points = Points(Path(launch.output), fault if has_fault else None, logs_folder)
    if launch.trace:
        points.write_trace(logs_folder / f"trace{rank}.json")
    install(points)
    return functools.partial(
        jobs.run,
        jobs.CASES[launch.case],
        Path(launch.output),
        resume=launch.resume,
        history=launch.history,
        on_load=points.loaded,
    )


def _wait(pids: list[int]) -> tuple[list[int], str]:
    """Wait for all processes; if one fails, end the others as torchrun does."""
    codes: dict[int, int] = {}
    started = time.monotonic()
    failed, hung = 0.0, ""
    is_stopping = False
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    failed = failed or (time.monotonic() if codes[pid] else 0.0)
        waited = time.monotonic() - failed if failed else 0.0
        alive = [pid for pid in pids if pid not in codes]
        if waited > PEER_TIMEOUT_S and not is_stopping:
            is_stopping = True
            _send(alive, signal.SIGTERM)
        if alive and (
            waited > PEER_TIMEOUT_S + STOP_TIMEOUT_S or time.monotonic() - started > RUN_TIMEOUT_S
        ):
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
    """Import the modules that runs would import late."""
    os.environ["MPLBACKEND"] = "agg"
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):  # hotcoco is optional
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def _run_and_exit(work: Callable[[], None]) -> NoReturn:
    """Run `work` and exit like the interpreter, but without its two seconds of cleanup."""
    code: object = 0
    try:
        work()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _import_all(TOY_MODULES + (DETECTOR_MODULES if sys.argv[1:] else ()))
    gc.freeze()  # else garbage collection in each process would copy the shared memory
    work = _serve()
    if work is not None:
        _run_and_exit(work)
