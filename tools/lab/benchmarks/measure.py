"""Speed as a ratio: two ways of doing one thing, timed in turn by one process.

A machine's mood changes from minute to minute; the ratio within one round changes far less.
"""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from engine.memory import keep_freed_memory
from tools.lab.benchmarks.errors import DisagreementError

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""What decides how fast a CPU is in bfloat16, as torch names it."""
WARM_UPS = 1
"""Rounds that are not counted: they fill caches and choose kernels."""
LONG_ROUND_S = 5.0
"""Seconds of a round from which its end is told."""


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round: of this project's way, and of the peer's."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the rounds of the peer's time over ours: above 1, ours is faster."""
        return statistics.median(p / o for o, p in zip(self.ours, self.peer, strict=True))

    def __str__(self) -> str:
        """Return the medians and the range of the ratio."""
        ratios = sorted(p / o for o, p in zip(self.ours, self.peer, strict=True))
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        return f"{_time(ours)} against {_time(peer)}; {ratios[0]:.3g} to {ratios[-1]:.3g} times"


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table.

    work: what was done. value: what came out. unit: of all three numbers; "x" is times as fast.
    promised: what is promised (at most, where smaller is better), None for a number that stands for
        itself. aim: what is hoped for.
    smaller_is_better: as for bytes. detail: the numbers behind the value.
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
        """Whether the promise is kept; None without one."""
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
    own_memory: bool = False,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Call both in turn, `rounds` times each, after a round that is not counted.

    Args:
        ours: this project's way.
        peer: the way that it is measured against.
        rounds: pairs of measurements.
        own_memory: the C library does for each as it does for its users: it keeps for ours what is
            freed (`engine.memory`). It then has to fill up again, in a call that is not counted.
        say: is told of each round that takes long, between rounds.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(WARM_UPS + rounds):
        started = time.perf_counter()
        for work, keep, taken in zip((ours, peer), (True, False), times, strict=True):
            if own_memory:
                keep_freed_memory(keep=keep)
                work()
            seconds = mean_seconds(work, calls=1)
            if number >= WARM_UPS:
                taken.append(seconds)
        if say is not None:
            tell_round(number - WARM_UPS + 1, rounds, time.perf_counter() - started, say)
    if own_memory:
        keep_freed_memory()
    return Comparison(tuple(times[0]), tuple(times[1]))


def tell_round(number: int, rounds: int, seconds: float, say: Callable[[str], None]) -> None:
    """Tell that a round is done, and how long the others will take; a short one says nothing.

    number: of the round, from 1; 0 is one that is not counted. seconds: it took.
    """
    if seconds > LONG_ROUND_S:
        left = timedelta(seconds=round(seconds * (rounds - number)))
        say(f"round {number} of {rounds} done, about {left} left")


def mean_seconds(work: Callable[[], object], *, calls: int) -> float:
    """Return the mean time of a call; a GPU is waited for before the first and after the last."""
    _wait_for_device()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    _wait_for_device()
    return (time.perf_counter() - start) / calls


def check_close(what: str, ours: Tensor, peer: Tensor, *, rtol: float, atol: float) -> None:
    """Raise DisagreementError where two results are not the same within the tolerance."""
    if ours.shape != peer.shape:
        raise DisagreementError(f"{what}: shape {tuple(ours.shape)} against {tuple(peer.shape)}")
    ours, peer = ours.detach().double(), peer.detach().double()
    excess = (ours - peer).abs() - rtol * peer.abs()
    if ours.numel() and not bool((excess <= atol).all()):
        worst = float((ours - peer).abs().max())
        raise DisagreementError(
            f"{what}: expected the peer's values within {atol:g} + {rtol:g} of them, "
            f"got a difference of {worst:g}"
        )


def peak_flops(*, dtype: torch.dtype, device: torch.device, rounds: int = 5) -> dict[str, float]:
    """Return the operations a second that this machine reaches: `matmul` and `conv` at their best.

    The matrices are square; the convolution is a 3x3 of ResNet's conv4, channels last. A
    multiplication and its addition are two operations.
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
    works: dict[str, tuple[Callable[[], object], float]] = {
        "matmul": (lambda: a @ b, 2.0 * side**3),
        "conv": (lambda: F.conv2d(x, weight, padding=1), 2.0 * x.numel() * 256 * 9),
    }
    peaks = {}
    with torch.no_grad():
        for name, (work, operations) in works.items():
            taken = compare(work, work, rounds=rounds)
            peaks[name] = operations / min(taken.ours + taken.peer)
    return peaks


def table_of(rows: Sequence[Row], title: str) -> Table:
    """Return what rich prints."""
    table = Table(title=title)
    for heading in ("work", "measured", "promised", "aim", "", "detail"):
        table.add_column(heading, justify="right" if heading in ("measured", "aim") else "left")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown_of(rows: Sequence[Row]) -> str:
    """Return the same table as Markdown."""
    lines = [
        "| work | measured | promised | aim | | detail |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines)


def report_of(measured: Mapping[str, Sequence[Row]], *, command: str, device: torch.device) -> str:
    """Return a file for results/: each benchmark's table, the command, the commit, the machine."""
    git = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            git, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = "not known"
    tables = [f"## {name}\n\n{markdown_of(rows)}" for name, rows in measured.items()]
    about = f"- Command: `python {command}`\n- Commit: {found}\n- Machine: {machine(device)}\n"
    return "\n\n".join(["# Benchmarks", *tables, about])


def machine(device: torch.device) -> str:
    """Return the GPU, or the processor and its threads, and torch's version, in one line."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        threads = torch.get_num_threads()
        known = torch.cpu.get_capabilities()
        instructions = [capability, *(each for each in BF16_INSTRUCTIONS if known.get(each))]
        processor = known.get("cpu_name", platform.machine())
        name = f"{processor} CPU with {', '.join(instructions)}, {threads} threads"
    return f"{name}, torch {torch.__version__}"


def _cells(row: Row) -> list[str]:
    limit = "at most " if row.smaller_is_better else ""
    verdict = {None: "", True: "holds", False: "MISSED"}[row.holds]
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
