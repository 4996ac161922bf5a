"""Reader processes: started, watched and ended so that no signal and no fault hangs a run.

torch's DataLoader starts them. What it leaves open is closed here: a signal to the process group
ends the readers before their parent can stop in order; a reader that dies raises in the middle of
whatever the parent does; one that is stopped, or finds /dev/shm full, is waited for for ever.

Reader processes need Linux or macOS; on Windows loader.workers=0 reads without them.
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
_GOODBYE_S = 5.0  # that readers get to finish what they read; then they are killed
_LESS = "lower loader.workers or loader.prefetch"
_MORE_SHARED = (
    f"give the container more (docker run --shm-size=8g), or {_LESS} (loader.workers=0 needs none)"
)


def read_ahead(
    read: Callable[[Request], Answer], requests: Iterable[Request], config: LoaderConfig
) -> Iterator[Answer]:
    """Yield what `read` makes of each request, in order, read ahead in processes.

    Args:
        read: called in a reader process, or here without any.
        requests: what to read.
        config: the number of processes, how far they read ahead, and the longest wait.

    Raises:
        UserError: raised by `read`.
        ReadingError: the machine refused something, or a reader was killed or does not answer.
    """
    if config.workers:
        yield from _read_in_processes(read, requests, config)
        return
    for request in requests:
        with _explained():
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
        collate_fn=_unchanged,
        worker_init_fn=_start_reader,
        generator=torch.Generator(),  # else making the iterator would draw from the run's own
    )
    free = free_shared_memory()
    others = set(multiprocessing.active_children())
    gc.collect()  # readers of an evaluation that failed are freed here, not in the new ones
    with _signals_held(), _explained():
        messages = iter(loader)
    watch = _Watch([each for each in multiprocessing.active_children() if each not in others])
    # Where nobody closes this iterator: Python, at its end, would wait for readers that ignore
    # SIGTERM.
    farewell = Finalize(None, watch.kill, exitpriority=1)
    watch.start()
    try:
        first = True
        while True:
            watch.left_s = config.read_timeout_s
            try:
                message = next(messages, None)
                answer: Any = None if message is None else pickle.loads(message[0])
            except Exception as error:
                fault = _fault(error, watch, config)
                if fault is None:
                    raise
                raise fault from error
            watch.left_s = float("inf")
            if message is None:
                return
            if isinstance(answer, UserError):
                raise answer
            if first:
                check_shared_memory(message[1], free, config)
                first = False
            yield answer
    finally:
        watch.left_s = _GOODBYE_S
        del messages
        farewell()
        watch.done.set()


class _Requests(torch.utils.data.Dataset[Any]):
    """What runs in a reader: answers, and errors as values, for raised they would be tracebacks."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __getitems__(self, request: Any) -> tuple[bytes, int]:
        try:
            with _explained():
                return _packed(self.read(request))
        except UserError as error:
            return _packed(error)


class _Pickler(ForkingPickler):
    """Moves tensors to shared memory and counts their bytes."""

    shared = 0

    def reducer_override(self, value: Any) -> Any:
        """Count tensors, and leave all to others."""
        if isinstance(value, torch.Tensor):
            self.shared += value.untyped_storage().nbytes()
        return NotImplemented


def _packed(answer: Any) -> tuple[bytes, int]:
    """Return a message, and how many bytes of shared memory it holds.

    Left to the DataLoader this happens in a thread, where an error loses the message.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dump(answer)
    return buffer.getvalue(), pickler.shared


def _unchanged(message: Any) -> Any:
    return message


def _start_reader(_number: int) -> None:
    """Leave signals to the parent, and end when it does, even when this process is stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _held())  # see _signals_held
    libc = c_library()
    if libc is not None and hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it ended before that was asked for
        os._exit(1)
    keep_freed_memory(keep=False)  # there are many of them, and images of many sizes


def _held() -> set[signal.Signals]:
    """Return the signals that wait while readers start."""
    return {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Keep signals waiting while readers start, which inherit that until they ignore them.

    torch's handler of SIGCHLD is taken back: it raises wherever the main process is when a reader
    dies, in the middle of a step or of writing a checkpoint. `_fault` finds dead readers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _held())
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Watch(threading.Thread):
    """Kills the readers when their time is up, which ends every wait for them.

    The DataLoader's own time limit does not cover a reader that stops after it announced a batch
    and before it handed it over. Time is counted in ticks: where all processes are suspended
    (Ctrl-Z), it stands still.
    """

    def __init__(self, readers: list[BaseProcess]) -> None:
        super().__init__(name="reader-watch", daemon=True)
        self.readers = readers
        self.left_s = float("inf")
        self.expired = False
        self.done = threading.Event()

    def run(self) -> None:
        """Tick."""
        while not self.done.wait(_TICK_S):
            self.left_s -= _TICK_S
            if self.left_s < 0:
                self.expired = True
                self.kill()
                return

    def kill(self) -> None:
        """End readers that are still there."""
        for reader in self.readers:
            reader.kill()


def _fault(error: Exception, watch: _Watch, config: LoaderConfig) -> ReadingError | None:
    """Return what to tell of an error met while waiting for readers; None: the error itself."""
    if watch.expired:
        return ReadingError(
            f"no batch of images within loader.read_timeout_s={config.read_timeout_s}: expected "
            "the readers to answer; look whether the disk with the images does, and whether "
            f"something stopped them (processes {', '.join(str(r.pid) for r in watch.readers)})"
        )
    if not isinstance(error, RuntimeError | OSError | EOFError):
        return None
    if isinstance(error, OSError | EOFError):  # a connection ends shortly before its process does
        multiprocessing.connection.wait([reader.sentinel for reader in watch.readers], timeout=1)
    for reader in watch.readers:
        if reader.exitcode:
            return ReadingError(f"reader process {reader.pid} {_end_of(reader.exitcode)}")
    line = _line_of(error)
    return None if line is None else ReadingError(line)


def _end_of(exitcode: int) -> str:
    """Say how a process ended and what to do."""
    if exitcode > 0:
        return f"ended with exit code {exitcode}; loader.workers=0 shows why"
    name = signal.Signals(-exitcode).name
    advice = {
        "SIGKILL": f"as the system does when memory runs out: {_LESS}, or loop.batch_size",
        "SIGBUS": f"{SHARED_MEMORY} is full: {_MORE_SHARED}",
    }
    return f"was killed by {name}: {advice.get(name, 'loader.workers=0 shows where')}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what the machine refuses into one line; a fault of the code stays a traceback."""
    try:
        yield
    except Exception as error:
        line = _line_of(error)
        if line is None:
            raise
        raise ReadingError(line) from error


def _line_of(error: Exception) -> str | None:
    """Return what to tell the user where the machine refused something, else None."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    refused = re.search(r"shared memory.*\((\d+)\)$", text)  # torch's, a RuntimeError
    if refused is not None:
        number = int(refused[1])
        if number in (errno.ENOSPC, errno.ENOMEM):
            return f"{SHARED_MEMORY}: no room for a batch of images: {_MORE_SHARED}"
    if number in (errno.EMFILE, errno.ENFILE) or "ancdata" in text or "Too many open" in text:
        return f"reading images: too many open files: raise the limit (ulimit -n 65536), or {_LESS}"
    no_memory = isinstance(error, MemoryError) or number == errno.ENOMEM
    if no_memory or "allocate memory" in text or "Insufficient memory" in text:
        return f"reading images: memory ran out: {_LESS}, or loop.batch_size"
    if number == errno.EAGAIN:
        return f"reading images: no more processes are allowed (ulimit -u): {_LESS}"
    return f"reading images: {text}" if number is not None else None


def free_shared_memory() -> int | None:
    """Return the free bytes of /dev/shm; None where there is no such thing."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def check_shared_memory(batch: int, free: int | None, config: LoaderConfig) -> None:
    """Refuse to start where batches that are read ahead would fill the shared memory.

    Args:
        batch: bytes of one.
        free: bytes free before the readers started; None checks nothing.
        config: how many are read ahead.

    Raises:
        ReadingError: they do not fit.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's; each has its readers
    count = processes * config.workers * config.prefetch
    if free is not None and count * batch > free:
        raise ReadingError(
            f"{SHARED_MEMORY}: expected {count * batch / 1e6:.0f} MB for {count} batches that are "
            f"read ahead, got {free / 1e6:.0f} MB free: {_MORE_SHARED}"
        )
