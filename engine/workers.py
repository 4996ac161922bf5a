"""Worker processes: torch's DataLoader, hardened so that no signal or fault makes a run hang.

Three problems of the DataLoader are solved here. A signal to the process group ends the workers
before their parent can stop in order. A dying worker raises in the parent at an arbitrary point of
its code. And the parent waits forever for a worker that is stopped or finds /dev/shm full.

Worker processes need Linux or macOS. On Windows use loader.workers=0.
"""

import contextlib
import errno
import gc
import io
import multiprocessing
import multiprocessing.connection
import os
import pickle
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from engine.errors import ReadingError, UserError
from engine.memory import c_library, keep_freed_memory
from engine.schema import LoaderConfig

Request = TypeVar("Request")
Answer = TypeVar("Answer")

SHARED_MEMORY = "/dev/shm"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_TICK_S = 0.5
_SHUTDOWN_S = 5.0  # time for workers to finish at the end; then they are killed
_READ_LESS = "lower loader.workers or loader.prefetch"
_MORE_SHARED = (
    "give the container more (docker run --shm-size=8g), or "
    f"{_READ_LESS} (loader.workers=0 needs none)"
)


def read_ahead(
    read: Callable[[Request], Answer], requests: Iterable[Request], config: LoaderConfig
) -> Iterator[Answer]:
    """Yield `read(request)` for each request, in order, read ahead in worker processes.

    Args:
        read: called in a worker process, or in this process if `config.workers` is 0.
        requests: arguments of `read`.
        config: number of processes, prefetched results per process, and the timeout.

    Raises:
        UserError: raised by `read`.
        ReadingError: out of memory or other resources, or a worker was killed or does not answer.
    """
    if config.workers:
        yield from _read_in_processes(read, requests, config)
        return
    for request in requests:
        with _as_reading_error():
            answer = read(request)
        yield answer


def _read_in_processes(
    read: Callable[[Request], Answer], requests: Iterable[Request], config: LoaderConfig
) -> Iterator[Answer]:
    loader: DataLoader[Any] = DataLoader(
        _Requests(read),
        batch_sampler=requests,  # type: ignore[arg-type]
        num_workers=config.workers,
        prefetch_factor=config.prefetch,
        collate_fn=_identity,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # otherwise it would advance the run's own generator
    )
    free = free_shared_memory()  # before the workers take any
    others = set(multiprocessing.active_children())  # processes that are not our workers
    gc.collect()  # free the workers of a failed evaluation here, not in the new workers
    with _signals_blocked(), _as_reading_error():
        messages = iter(loader)
    watchdog = _Watchdog([each for each in multiprocessing.active_children() if each not in others])
    # In case this iterator is never closed: at exit, Python would wait for the workers, which
    # ignore SIGTERM.
    kill_at_exit = Finalize(None, watchdog.kill, exitpriority=1)
    watchdog.start()
    try:
        first = True  # the first batch tells how large batches are
        while True:
            watchdog.left_s = config.read_timeout_s
            try:
                message = next(messages, None)
                answer: Any = None if message is None else pickle.loads(message[0])
            except Exception as error:
                reading_error = _reading_error(error, watchdog, config)
                if reading_error is None:
                    raise
                raise reading_error from error
            watchdog.left_s = float("inf")  # no timeout while the caller computes
            if message is None:
                return
            if isinstance(answer, UserError):
                raise answer
            if first:
                check_shared_memory(message[1], free, config)
                first = False
            yield answer
    finally:
        watchdog.left_s = _SHUTDOWN_S
        del messages  # stops the workers; the watchdog kills those that do not stop in time
        kill_at_exit()
        watchdog.done.set()


class _Requests(torch.utils.data.Dataset[Any]):
    """The data set that runs in a worker; it returns errors as values, without a traceback."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __getitems__(self, request: Any) -> tuple[bytes, int]:
        try:
            with _as_reading_error():
                return _packed(self.read(request))
        except UserError as error:
            return _packed(error)


class _Pickler(ForkingPickler):
    """Moves tensors to shared memory, as its base does, and counts their bytes."""

    shared = 0

    def reducer_override(self, value: Any) -> Any:
        """Count the bytes of tensors; the base class does the pickling."""
        if isinstance(value, torch.Tensor):
            self.shared += value.untyped_storage().nbytes()
        return NotImplemented


def _packed(answer: Any) -> tuple[bytes, int]:
    """Pickle a result; return it with the number of bytes that it holds in shared memory.

    The DataLoader would pickle it in a thread, where an error loses the result.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dump(answer)
    return buffer.getvalue(), pickler.shared


def _identity(message: Any) -> Any:
    return message


def _start_worker(_number: int) -> None:
    """Set up a worker: ignore signals, and end with the parent, even if this process is stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _blocked())  # see _signals_blocked
    libc = c_library()
    if libc is not None and hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it ended before prctl was called
        os._exit(1)
    keep_freed_memory(keep=False)  # many workers with images of many sizes would keep too much


def _blocked() -> set[signal.Signals]:
    """Return the signals that are blocked while workers start; Windows lacks SIGCHLD."""
    return {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals while workers start; the workers inherit this until they ignore the signals.

    Also restore the handler of SIGCHLD that torch replaces. When a worker dies, torch's handler
    raises wherever the main process is, such as in a step or while it writes a checkpoint. Dead
    workers are found by `_reading_error` instead.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _blocked())
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Watchdog(threading.Thread):
    """Thread that kills the workers after a timeout, which ends every wait for them.

    The DataLoader's own timeout does not cover a worker that stops between announcing a batch and
    sending it. Time is counted in ticks, so it does not advance while all processes are suspended
    (Ctrl-Z).
    """

    def __init__(self, workers: list[BaseProcess]) -> None:
        super().__init__(name="worker-watchdog", daemon=True)
        self.workers = workers
        self.left_s = float("inf")
        self.expired = False
        self.done = threading.Event()

    def run(self) -> None:
        """Count down `left_s`; kill the workers when it is below 0."""
        while not self.done.wait(_TICK_S):
            self.left_s -= _TICK_S
            if self.left_s < 0:
                self.expired = True
                self.kill()
                return

    def kill(self) -> None:
        """Kill the workers."""
        for worker in self.workers:
            worker.kill()


def _reading_error(
    error: Exception, watchdog: _Watchdog, config: LoaderConfig
) -> ReadingError | None:
    """Return the ReadingError that explains an error while waiting; None if it explains itself."""
    if watchdog.expired:
        return ReadingError(
            f"no batch of images within loader.read_timeout_s={config.read_timeout_s}: expected "
            "an answer of the workers; check whether the disk with the images responds, and "
            "whether the workers were stopped "
            f"(processes {', '.join(str(worker.pid) for worker in watchdog.workers)})"
        )
    if not isinstance(error, RuntimeError | OSError | EOFError):
        return None
    if isinstance(error, OSError | EOFError):  # a connection closes shortly before its process ends
        multiprocessing.connection.wait([worker.sentinel for worker in watchdog.workers], timeout=1)
    for worker in watchdog.workers:
        if worker.exitcode:
            return ReadingError(f"worker process {worker.pid} {_exit_description(worker.exitcode)}")
    line = _machine_error_message(error)
    return None if line is None else ReadingError(line)


def _exit_description(exitcode: int) -> str:
    """Return how a process ended and what to do."""
    if exitcode > 0:
        return f"ended with exit code {exitcode}; loader.workers=0 shows why"
    name = signal.Signals(-exitcode).name
    advice = {
        "SIGKILL": f"as the system does when memory runs out: {_READ_LESS}, or loop.batch_size",
        "SIGBUS": f"{SHARED_MEMORY} is full: {_MORE_SHARED}",
    }
    return f"was killed by {name}: {advice.get(name, 'loader.workers=0 shows where')}"


@contextlib.contextmanager
def _as_reading_error() -> Iterator[None]:
    """Convert errors of the machine into a one-line ReadingError; bugs keep their traceback."""
    try:
        yield
    except Exception as error:
        line = _machine_error_message(error)
        if line is None:
            raise
        raise ReadingError(line) from error


def _machine_error_message(error: Exception) -> str | None:
    """Return a message if `error` is a lack of resources or an I/O error, otherwise None."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    refused = re.search(r"shared memory.*\((\d+)\)$", text)  # torch raises a RuntimeError
    if refused is not None:
        number = int(refused[1])
        if number in (errno.ENOSPC, errno.ENOMEM):
            return f"{SHARED_MEMORY}: no room for a batch of images: {_MORE_SHARED}"
    if number in (errno.EMFILE, errno.ENFILE) or "ancdata" in text or "Too many open" in text:
        text = "too many open files: raise the limit (ulimit -n 65536)"
        return f"reading images: {text}, or {_READ_LESS}"
    no_memory = isinstance(error, MemoryError) or number == errno.ENOMEM
    if no_memory or "allocate memory" in text or "Insufficient memory" in text:
        return f"reading images: memory ran out: {_READ_LESS}, or loop.batch_size"
    if number == errno.EAGAIN:
        return f"reading images: no more processes are allowed (ulimit -u): {_READ_LESS}"
    return f"reading images: {text}" if number is not None else None


def free_shared_memory() -> int | None:
    """Return the free bytes of /dev/shm; None if it does not exist."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def check_shared_memory(batch: int, free: int | None, config: LoaderConfig) -> None:
    """Check that the prefetched batches fit into the shared memory.

    Args:
        batch: bytes of one batch.
        free: free bytes before the workers started; None skips the check.
        config: number of workers and of prefetched batches.

    Raises:
        ReadingError: the batches do not fit.
    """
    processes = int(
        os.environ.get("LOCAL_WORLD_SIZE", "1")
    )  # set by torchrun; each process has its own workers
    count = processes * config.workers * config.prefetch
    if free is not None and count * batch > free:
        raise ReadingError(
            f"{SHARED_MEMORY}: expected {count * batch / 1e6:.0f} MB for {count} prefetched "
            f"batches, got {free / 1e6:.0f} MB free: {_MORE_SHARED}"
        )
