"""Timing of two implementations as a ratio, and the rows of a benchmark's table.

Both are timed in turn in one process. The speed of a machine changes from minute to minute, but the
ratio within one round changes far less.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from engine.memory import keep_freed_memory
from engine.provenance import current_commit, describe_machine
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.tables import console_table, markdown_table

WARM_UPS = 1
"""Rounds that are not counted: they fill caches and select kernels."""
LONG_ROUND_S = 5.0
"""Seconds; the end of a round that takes longer is logged."""
HEADINGS = ("work", "measured", "promised", "aim", "", "detail")
FreedMemory = Literal["as set", "kept", "kept by ours"]
"""What malloc does with freed memory (`engine.memory`). as set: what this process has set before.
kept: both sides keep it. kept by ours: the peer has malloc's default, as its users have it."""


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round, of this project's implementation and of the peer's."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the rounds of peer time / our time; above 1, ours is faster."""
        return statistics.median(p / o for o, p in zip(self.ours, self.peer, strict=True))

    def __str__(self) -> str:
        """Return the medians and the range of the ratio."""
        ratios = sorted(p / o for o, p in zip(self.ours, self.peer, strict=True))
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        return f"{_time(ours)} against {_time(peer)}; {ratios[0]:.3g} to {ratios[-1]:.3g} times"


@dataclass(frozen=True)
class Row:
    """One row of a benchmark's table.

    work: what was measured. value: the result. unit: of value, promised and aim; "x" means times as
        fast as the peer.
    promised: the bound that must hold: a minimum, or a maximum if smaller is better; None for a
        value without one. aim: the value to work towards.
    smaller_is_better: True for times and bytes. detail: the numbers behind the value.
    """

    work: str
    value: float
    unit: str = "x"
    promised: float | None = None
    aim: float | None = None
    smaller_is_better: bool = False
    detail: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the promised bound holds; None without one."""
        if self.promised is None:
            return None
        return (
            (self.value <= self.promised)
            if self.smaller_is_better
            else (self.value >= self.promised)
        )


def compare(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    rounds: int,
    freed_memory: FreedMemory = "as set",
    log: Callable[[str], None] | None = None,
) -> Comparison:
    """Time both in turn, `rounds` times each, after a warm-up round that is not counted.

    Args:
        ours: this project's implementation.
        peer: the implementation that it is compared with.
        rounds: pairs of measurements.
        freed_memory: which side keeps it. If only ours does, malloc is switched before each call,
            and an uncounted call refills the kept memory. Unless "as set", it stays kept.
        log: is called after each long round; see `log_round`.
    """
    times: tuple[list[float], list[float]] = ([], [])
    if freed_memory == "kept":
        keep_freed_memory()
    for number in range(WARM_UPS + rounds):
        started = time.perf_counter()
        for work, keep, taken in zip((ours, peer), (True, False), times, strict=True):
            if freed_memory == "kept by ours":  # switch for this side, then refill its memory
                keep_freed_memory(keep=keep)
                work()
            seconds = mean_seconds(work, calls=1)
            if number >= WARM_UPS:
                taken.append(seconds)
        if log is not None:
            log_round(number - WARM_UPS + 1, rounds, time.perf_counter() - started, log)
    if freed_memory == "kept by ours":
        keep_freed_memory()
    return Comparison(tuple(times[0]), tuple(times[1]))


def log_round(number: int, rounds: int, seconds: float, log: Callable[[str], None]) -> None:
    """Log that a round is done and how long the remaining ones will take, unless it was short.

    number: of the round, from 1; 0 is the warm-up round. seconds: duration of the round.
    """
    if seconds > LONG_ROUND_S:
        left = timedelta(seconds=round(seconds * (rounds - number)))
        log(f"round {number} of {rounds} done, about {left} left")


def mean_seconds(work: Callable[[], object], *, calls: int) -> float:
    """Return the mean time of a call in seconds, with the GPU synchronised before and after all."""
    _wait_for_device()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    _wait_for_device()
    return (time.perf_counter() - start) / calls


def check_close(what: str, ours: Tensor, peer: Tensor, *, rtol: float, atol: float) -> None:
    """Raise DisagreementError if two results differ by more than atol + rtol * |peer|.

    The results may be on different devices: ours predicts on the CPU, the peer on the GPU.
    """
    if ours.shape != peer.shape:
        raise DisagreementError(f"{what}: shape {tuple(ours.shape)} against {tuple(peer.shape)}")
    ours, peer = (values.detach().cpu().double() for values in (ours, peer))
    excess = (ours - peer).abs() - rtol * peer.abs()
    if ours.numel() and not bool((excess <= atol).all()):
        worst = float((ours - peer).abs().max())
        raise DisagreementError(
            f"{what}: expected the peer's values within {atol:g} + {rtol:g} of them, "
            f"got a difference of {worst:g}"
        )


def peak_flops(*, dtype: torch.dtype, device: torch.device, rounds: int = 5) -> dict[str, float]:
    """Return the highest measured operations per second of a `matmul` and a `conv`.

    The matrices are square; the convolution is a 3x3 one of ResNet's conv4, channels last. A
    multiply-add counts as two operations.
    """
    side = 2048 if device.type == "cpu" else 8192
    batch = 2 if device.type == "cpu" else 32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(batch, 256, 64, 96, device=device, dtype=dtype).to(
        memory_format=torch.channels_last
    )
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).to(
        memory_format=torch.channels_last
    )
    # (function, operations): side^3 multiply-adds, or 9 * 256 per element of the output, which has
    # the shape of x
    works: dict[str, tuple[Callable[[], object], float]] = {
        "matmul": (lambda: a @ b, 2.0 * side**3),
        "conv": (lambda: F.conv2d(x, weight, padding=1), 2.0 * x.numel() * 256 * 9),
    }
    peaks = {}
    with torch.no_grad():
        for name, (work, operations) in works.items():
            taken = compare(work, work, rounds=rounds)
            # both sides run the same work: the fastest call of either is the peak
            peaks[name] = operations / min(taken.ours + taken.peer)
    return peaks


def table_of(rows: Sequence[Row], title: str) -> Table:
    """Return the table of a benchmark for the console."""
    right = ("measured", "aim")
    return console_table(HEADINGS, map(_cells, rows), title=title, right_aligned=right)


def markdown_of(rows: Sequence[Row]) -> str:
    """Return the same table as Markdown."""
    return markdown_table(HEADINGS, map(_cells, rows))


def report_of(measured: Mapping[str, Sequence[Row]], *, command: str, device: torch.device) -> str:
    """Return the text of a file for results/: the tables, the command, the commit, the machine."""
    tables = [f"## {name}\n\n{markdown_of(rows)}" for name, rows in measured.items()]
    about = (
        f"- Command: `python {command}`\n"
        f"- Commit: {current_commit()}\n"
        f"- Machine: {describe_machine(device)}\n"
    )
    return "\n\n".join(["# Benchmarks", *tables, about])


def _cells(row: Row) -> list[str]:
    """Return the cells of a row, under HEADINGS."""
    limit = "at most " if row.smaller_is_better else ""
    verdict = {None: "", True: "holds", False: "MISSED"}[row.holds]
    # "2 x" becomes "2x"
    numbers = [
        "" if value is None else f"{_number(value)} {row.unit}".replace(" x", "x")
        for value in (row.value, row.promised, row.aim)
    ]
    return [
        row.work,
        numbers[0],
        limit + numbers[1] if numbers[1] else "",
        numbers[2],
        verdict,
        row.detail,
    ]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
