"""Worker processes under signals, faults and full shared memory."""

import errno
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.errors import ReadingError, UserError
from engine.schema import LoaderConfig
from engine.workers import check_shared_memory, read_ahead

MB = 10**6


def row(number: int) -> Tensor:
    return torch.full((3,), number)


def rows(read: Callable[[int], Tensor] = row, **settings: int) -> Iterator[Tensor]:
    config = LoaderConfig(**({"workers": 2} | settings))
    return read_ahead(read, itertools.count(), config)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_answers_come_in_order_and_no_worker_remains(workers: int) -> None:
    answers = rows(workers=workers)
    assert [int(next(answers)[0]) for _ in range(10)] == list(range(10))
    assert len(multiprocessing.active_children()) == workers
    answers.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.mark.extended
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_ignore_stop_signals(number: signal.Signals) -> None:
    answers = rows()
    next(answers)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, number)
    assert [int(next(answers)[0]) for _ in range(20)] == list(range(1, 21))


@pytest.mark.extended
def test_workers_ignore_stop_signals_while_they_start() -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    done = threading.Event()

    def send_signals() -> None:
        while not done.is_set():
            for pid in children.read_text(encoding="ascii").split():
                os.kill(int(pid), signal.SIGTERM)

    sender = threading.Thread(target=send_signals)
    sender.start()
    try:
        answers = rows()
        values = [int(next(answers)[0]) for _ in range(16)]
    finally:
        done.set()
        sender.join()
    assert values == list(range(16))


@pytest.mark.extended
def test_killed_worker_is_one_line_and_raises_nowhere_else() -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    answers = rows()
    next(answers)
    assert signal.getsignal(signal.SIGCHLD) is handler
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    time.sleep(0.01)  # torch's own SIGCHLD handler would raise here
    with pytest.raises(ReadingError, match=r"worker process \d+ was killed by SIGKILL.*memory"):
        list(itertools.islice(answers, 20))
    assert not multiprocessing.active_children()


def stop_all() -> None:
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)


@pytest.mark.extended
def test_stopped_worker_is_one_line() -> None:
    answers = rows(read_timeout_s=1)
    next(answers)
    time.sleep(0.1)  # so that batches are announced but their memory is not sent yet
    stop_all()
    with pytest.raises(ReadingError, match=r"no batch .* loader.read_timeout_s=1: expected"):
        list(itertools.islice(answers, 20))
    assert not multiprocessing.active_children()


@pytest.mark.extended
def test_time_between_requests_does_not_count_for_the_timeout() -> None:
    answers = rows(read_timeout_s=1)
    next(answers)
    time.sleep(1.8)
    assert int(next(answers)[0]) == 1


def failing(error: Exception) -> Callable[[int], Tensor]:
    def read(number: int) -> Tensor:
        raise error

    return read


SHARED = "unable to allocate shared memory(shm) for file </torch_7_1_0>: "


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "memory ran out: lower loader.workers"),
        (RuntimeError("[enforce] can't allocate memory: you tried 9 bytes"), "memory ran out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files: raise the limit"),
        (RuntimeError("received 0 items of ancdata"), "too many open files"),
        (RuntimeError(f"{SHARED}Too many open files (24)"), "too many open files"),
        (RuntimeError(f"{SHARED}No space left on device (28)"), r"/dev/shm: no room.*--shm-size"),
        (OSError(errno.EIO, "Input/output error", "a.jpg"), r"Input/output error: 'a.jpg'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_machine_errors_are_one_line(error: Exception, line: str, workers: int) -> None:
    with pytest.raises(ReadingError, match=line) as raised:
        next(rows(failing(error), workers=workers))
    assert "\n" not in str(raised.value)


@pytest.mark.extended
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_is_one_line_and_a_bug_is_a_traceback(workers: int) -> None:
    with pytest.raises(UserError, match=r"^a\.jpg: bad$"):
        next(rows(failing(UserError("a.jpg: bad")), workers=workers))
    with pytest.raises(KeyError, match="slip"):
        next(rows(failing(KeyError("slip")), workers=workers))


@pytest.mark.parametrize(
    ("batch", "free", "settings", "processes", "fits"),
    [
        (1 * MB, 64 * MB, {}, 1, True),
        (16 * MB, 64 * MB, {}, 1, True),
        (17 * MB, 64 * MB, {}, 1, False),
        (16 * MB, 64 * MB, {"workers": 1, "prefetch": 5}, 1, False),
        (16 * MB, 64 * MB, {}, 2, False),
        (17 * MB, None, {}, 1, True),
    ],
)
def test_shared_memory_is_checked(
    batch: int,
    free: int | None,
    settings: dict[str, int],
    processes: int,
    fits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    config = LoaderConfig(**settings)
    if fits:
        check_shared_memory(batch, free, config)
    else:
        with pytest.raises(ReadingError, match=r"/dev/shm: expected \d+ MB .* got 64 MB free: .*"):
            check_shared_memory(batch, free, config)


def run_and_end(how: str, connection: Connection) -> None:
    """Read in processes, stop one of them, and end without closing the iterator."""
    answers = rows()
    next(answers)
    workers = multiprocessing.active_children()
    connection.send([worker.pid for worker in workers])
    time.sleep(0.1)
    assert workers[0].pid is not None
    os.kill(workers[0].pid, signal.SIGSTOP)
    if how == "exits":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGTERM)


@pytest.mark.extended
@pytest.mark.parametrize(("how", "code"), [("killed", -9), ("terminated", -15), ("exits", 3)])
def test_no_worker_outlives_its_process(how: str, code: int) -> None:
    receiver, sender = multiprocessing.Pipe()
    parent = multiprocessing.Process(target=run_and_end, args=(how, sender))
    parent.start()
    pids = receiver.recv()
    parent.join(timeout=20)
    assert parent.exitcode == code
    assert len(pids) == 2
    until = time.monotonic() + 10
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    assert not left


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # a zombie counts as ended
