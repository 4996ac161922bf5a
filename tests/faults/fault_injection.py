"""Fault injection: signals and full disks at a numbered point of a run.

In a forked process all functions of Python that write files are wrapped: `open`, the raw file below
it, and those of `os`. Each call that concerns the run folder is a point with a number. Optimiser
steps and forward passes of an evaluation are points too. A fault is injected just before the point
with its number, which is the same place in every trial.
"""

import atexit
import builtins
import errno
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

SIGNALS = {"kill": signal.SIGKILL, "torn": signal.SIGKILL, "term": signal.SIGTERM}
SIGNALS |= {"int": signal.SIGINT}
NEEDS_SPACE = ("open", "write", "mkdir", "fsync")
"""Calls that fail on a full disk; renaming and removing still work."""
PAUSE_S = 1.2
"""Seconds between two signals that count as two requests."""
NON_WRITING = ("step", "predict")
"""Points that write nothing: before an optimiser step, before a batch of an evaluation."""


@dataclass(frozen=True)
class Fault:
    """A fault that is injected into a run, once.

    do: `kill` (SIGKILL), `torn` (SIGKILL after half of a write), `term`, `int` (signals),
        `full` (one ENOSPC), `filled` (ENOSPC from this point on).
    point: number of the point before which it is injected, from 1.
    channel: `main` counts points of the main thread, `events` writes of TensorBoard's file, `train`
        and `val` the samples that the first worker process loads.
    rank: the process in which it is injected.
    group: whether the signal is sent to the whole process group.
    again: points after which the signal is sent a second time; 0 is never. At the very next point
        it is a duplicate, as `timeout` sends; later it is a second request, `PAUSE_S` after the
        first.
    """

    do: str
    point: int
    channel: str = "main"
    rank: int = 0
    group: bool = False
    again: int = 0


@dataclass(frozen=True)
class Point:
    """A point.

    name: the call that follows. path: relative to the run folder. step: optimiser steps so far.
    """

    name: str
    path: str
    step: int


class Points:
    """Counts the points of this process and its workers, and injects the fault."""

    def __init__(self, output: Path, fault: Fault | None, logs_folder: Path) -> None:
        """Watch the folder `output`; write the injected point to `logs_folder`/injected.json."""
        self.output, self.fault, self.logs_folder = os.path.abspath(output), fault, logs_folder  # noqa: PTH100
        self.pid = os.getpid()
        self.passed: list[Point] = []
        self.counts: dict[str, int] = {}
        self.steps = 0
        self.disk_full = False
        self._unwrapped = os.open, os.write, os.close  # before they are wrapped

    def write_trace(self, path: Path) -> None:
        """At exit, write all points of the main thread as JSON."""

        def write() -> None:
            passed = [asdict(point) for point in self.passed]
            self._write(path, json.dumps({"points": passed, **self.counts}))

        atexit.register(write)

    def at(self, name: str, path: Any = None) -> str:
        """Count a point; return `torn` or `short` if only half of a write shall be done, else "".

        Raises:
            OSError: the disk is full.
        """
        where = self._inside(path)
        if where is None or os.getpid() != self.pid:
            return ""
        channel = "events" if "tfevents" in where else "main"
        if channel == "main" and threading.current_thread() is not threading.main_thread():
            return ""
        if name == "step":
            self.steps += 1
        point = Point(name, where, self.steps)
        if channel == "main":
            self.passed.append(point)
        if self.disk_full and name in NEEDS_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)
        return self._count(channel, point)

    def loaded(self, channel: str) -> None:
        """Count a sample in a worker process; only the first of several workers counts."""
        info = torch.utils.data.get_worker_info()
        # each evaluation starts new workers; only one of them gets the fault
        if info is not None and info.id == 0 and not (self.logs_folder / "injected.json").exists():
            self._count(channel, Point("load", "", -1))

    def _count(self, channel: str, point: Point) -> str:
        count = self.counts[channel] = self.counts.get(channel, 0) + 1
        fault = self.fault
        if fault is None or fault.channel != channel:
            return ""
        if count == fault.point:
            self._write(self.logs_folder / "injected.json", json.dumps(asdict(point)))
            return self._inject(fault, point)
        if fault.again and count == fault.point + fault.again:
            time.sleep(PAUSE_S if fault.again > 1 else 0)
            self._signal(fault)
        return ""

    def _inject(self, fault: Fault, point: Point) -> str:
        if fault.do in ("full", "filled"):
            self.disk_full = fault.do == "filled"
            if point.name != "write":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), point.path)
            return "short"
        if fault.do == "torn" and point.name == "write":
            return "torn"
        self._signal(fault)
        return ""

    def _signal(self, fault: Fault) -> None:
        if fault.group:
            os.killpg(os.getpgrp(), SIGNALS[fault.do])
        else:
            os.kill(os.getpid(), SIGNALS[fault.do])

    def _inside(self, path: Any) -> str | None:
        """Return the path relative to the run folder; None if it is outside."""
        if path is None:
            return ""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115
            except OSError:
                return None
        full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        if full != self.output and not full.startswith(self.output + os.sep):
            return None
        return os.path.relpath(full, self.output)

    def _write(self, path: Path, text: str) -> None:
        open_file, write, close = self._unwrapped
        descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        write(descriptor, text.encode())
        close(descriptor)


def install(points: Points) -> None:
    """Wrap the functions that write files in this process, and hook steps and evaluations."""
    _wrap_open(points)
    for name in ("replace", "rename", "unlink", "remove", "rmdir", "truncate", "link", "symlink"):
        setattr(os, name, _counted(points, name, getattr(os, name)))
    _wrap_descriptors(points)
    real_mkdir = os.mkdir

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if not os.path.lexists(path):  # otherwise mkdir needs no disk space
            points.at("mkdir", path)
        real_mkdir(path, *args, **kwargs)

    os.mkdir = mkdir

    def before_step(*_: object) -> None:
        points.at("step")

    def before_forward(module: nn.Module, _: object) -> None:
        # one layer of each network: after the detector's stem, and the toy's only layer
        is_marker = isinstance(module, nn.MaxPool2d) or getattr(module, "in_features", 0) == 3
        if is_marker and torch.is_inference_mode_enabled():
            points.at("predict")

    register_optimizer_step_pre_hook(before_step)
    register_module_forward_pre_hook(before_forward)


def _counted(points: Points, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, *args: Any, **kwargs: Any) -> Any:
        points.at(name, path)
        return real(path, *args, **kwargs)

    return call


def _wrap_descriptors(points: Points) -> None:
    real_open, real_write = os.open, os.write

    def open_file(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            points.at("open", path)
        return real_open(path, flags, *args, **kwargs)

    def write(descriptor: int, data: Any) -> int:
        half = points.at("write", descriptor)
        if half:
            real_write(descriptor, data[: len(data) // 2])
            _fail_after_half(half)
        return real_write(descriptor, data)

    def fsync(fd: Any) -> None:
        # Skipped: a kill does not lose the page cache, and disks are slow.
        points.at("fsync", fd if isinstance(fd, int) else fd.fileno())

    os.open, os.write, os.fsync = open_file, write, fsync


def _fail_after_half(half: str) -> None:
    if half == "torn":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _wrap_open(points: Points) -> None:
    real_open = io.open

    class Raw(io.FileIO):
        """A file whose 1st, 2nd, 4th, 8th ... write is a point."""

        writes = 0
        refuse = False

        def write(self, data: Any) -> int:
            if self.refuse:
                self.refuse = False
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if points.disk_full:
                points.at("write", self.name)
            self.writes += 1
            counts = self.writes & (self.writes - 1) == 0
            half = points.at("write", self.name) if counts else ""
            if not half:
                return super().write(data)
            # like a disk: the last bytes that fit are written, and the next call fails
            begun = super().write(memoryview(data).cast("B")[: len(data) // 2])
            if half == "torn" or not begun:
                _fail_after_half(half)
            self.refuse = True
            return begun

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        reads_only = not set(mode) & set("wax+")
        if reads_only or isinstance(file, int) or points._inside(file) is None:
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        points.at("open", file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd=closefd, opener=opener)
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)

    io.open = builtins.open = opened
