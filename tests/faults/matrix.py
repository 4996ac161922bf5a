"""The matrix of tries: `python -m tests.faults.matrix [GROUP | TRY ...]`, none is all.

A group is a row of the table below, a try has a name as `apart:1:kill@57` (see `Try`). What is
wrong is listed by try, and the folder of such a try stays: with what the processes wrote, and
`hurt/struck.json`, the point at which it was hurt.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.faults.points import Fault
from tests.faults.server import Server
from tests.faults.tries import Bench, Try, Whole, writes

SERVERS = 3
"""Runs at a time; those that wait for reading processes to end leave the cores to others."""


@dataclass(frozen=True)
class Group:
    """Tries of one kind.

    what: for the table.
    case, processes: of all of them.
    tries: makes faults, given the uninterrupted run.
    """

    what: str
    case: str
    processes: int
    faults: Callable[[Whole], Iterable[Fault]]
    chain: bool = False

    def tries(self, whole: Whole) -> list[Try]:
        """Return the tries in order."""
        return [Try(self.case, self.processes, fault, self.chain) for fault in self.faults(whole)]


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """Return `count` of the numbers, evenly; all where there are fewer."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[(2 * n + 1) * len(numbers) // (2 * count)] for n in range(count)]


def at_writes(do: str, count: int = 10**6) -> Callable[[Whole], list[Fault]]:
    """Make a fault at each change of the folder, or at `count` of them."""

    def faults(whole: Whole) -> list[Fault]:
        points = whole.points[0]
        numbers = writes(points)
        if do == "torn":
            numbers = [number for number in numbers if points[number - 1].name == "write"]
        if do in ("full", "filled"):  # nothing asks for space to rename or remove
            numbers = [n for n in numbers if points[n - 1].name in ("open", "write", "mkdir")]
        return [Fault(do, number) for number in spread(numbers, count)]

    return faults


def signals(
    *, count: int, ranks: Sequence[int] = (0,), again: int = 0
) -> Callable[[Whole], list[Fault]]:
    """Make SIGTERM and SIGINT to process and group in turn, over all points of the run."""

    def faults(whole: Whole) -> list[Fault]:
        made = []
        for index in range(count):
            rank = ranks[index // 4 % len(ranks)]
            points = whole.points[rank]
            number = (2 * index + 1) * len(points) // (2 * count) + 1
            do, group = ("term", "int")[index % 2], index % 4 > 1
            made.append(Fault(do, number, rank=rank, group=group, again=again * (1 + index % 3)))
        return made

    return faults


def in_readers(whole: Whole) -> list[Fault]:
    """Kill a reading process, and end the group from it, while training and while evaluating."""
    del whole
    places = [("train", n) for n in (1, 5, 10, 15)] + [("val", n) for n in (1, 3, 5)]
    kills = [Fault("kill", number, channel) for channel, number in places]
    both = [("term", "train"), ("int", "train"), ("term", "val"), ("int", "val")]
    return kills + [Fault(do, n, channel, group=True) for do, channel in both for n in (2, 4)]


def in_events(whole: Whole) -> list[Fault]:
    """Hurt the run while TensorBoard's thread writes."""
    points = spread(range(1, whole.events), 3)
    return [Fault(do, point, "events") for do in ("kill", "full", "filled") for point in points]


def at_the_end(whole: Whole) -> list[Fault]:
    """Kill the run at each change of its folder after the last step."""
    numbers = writes(whole.points[0])
    ends = [n for n in numbers if whole.points[0][n - 1].step == whole.last_step]
    return [Fault("kill", number) for number in ends]


def killed_peer(whole: Whole) -> list[Fault]:
    """Kill the second process, which writes nothing, in steps and evaluations."""
    return [Fault("kill", n, rank=1) for n in spread(range(1, len(whole.points[1]) + 1), 5)]


def chained(whole: Whole) -> list[Fault]:
    """Kill the run and each that resumes it after so many points: more than are between saves."""
    del whole
    return [Fault("kill", number) for number in range(70, 120, 7)]


GROUPS = {
    "kill-equal": Group("SIGKILL at writes", "equal", 1, at_writes("kill", 24)),
    "kill-apart": Group("SIGKILL at every write", "apart", 1, at_writes("kill")),
    "kill-late": Group("SIGKILL at writes", "late", 1, at_writes("kill", 30)),
    "kill-last": Group("SIGKILL at every write after the last step", "last", 1, at_the_end),
    "kill-readers": Group("SIGKILL at writes", "readers", 1, at_writes("kill", 12)),
    "kill-chain": Group("SIGKILL, and again of each resumed run", "apart", 1, chained, chain=True),
    "torn-apart": Group("SIGKILL in the middle of a write", "apart", 1, at_writes("torn", 20)),
    "full-apart": Group("ENOSPC once, at every write", "apart", 1, at_writes("full")),
    "filled-late": Group("ENOSPC from a write on", "late", 1, at_writes("filled", 30)),
    "events": Group("SIGKILL, ENOSPC in TensorBoard's thread", "equal", 1, in_events),
    "signals-equal": Group("signals to process, group", "equal", 1, signals(count=16)),
    "signals-last": Group("signals to process, group", "last", 1, signals(count=24)),
    "signals-late": Group("signals to process, group", "late", 1, signals(count=16)),
    "signals-readers": Group("signals to process, group", "readers", 1, signals(count=24)),
    "twice-apart": Group("two signals", "apart", 1, signals(count=18, again=1)),
    "in-readers": Group("SIGKILL of a reader, signals to the group", "readers", 1, in_readers),
    "kill-two": Group("SIGKILL of process 0 at writes", "apart", 2, at_writes("kill", 12)),
    "kill-peer": Group("SIGKILL of process 1", "apart", 2, killed_peer),
    "full-two": Group("ENOSPC once", "apart", 2, at_writes("full", 8)),
    "signals-two": Group("signals to 0, 1, group", "late", 2, signals(count=16, ranks=(0, 1))),
    "kill-detector": Group("SIGKILL at writes", "detector", 1, at_writes("kill", 12)),
    "full-detector": Group("ENOSPC once", "detector", 1, at_writes("full", 8)),
    "signals-detector": Group("signals", "detector_readers", 1, signals(count=8)),
    "detector-two": Group("SIGKILL of process 0", "detector", 2, at_writes("kill", 4)),
}


@dataclass(frozen=True)
class Row:
    """A line of the table: how many tries, what is wrong by try, and with the uninterrupted run."""

    name: str
    tries: int
    seconds: float
    wrong: dict[str, list[str]]
    flaws: tuple[str, ...]

    def cells(self) -> str:
        """Return the line."""
        group = GROUPS[self.name]
        cells = [self.name, group.what, group.case, group.processes, self.tries]
        ends = [self.tries - len(self.wrong), f"{self.seconds:.0f}"]
        return "| " + " | ".join(str(cell) for cell in [*cells, *ends]) + " |"


class Pool:
    """Servers that share the tries of a group."""

    def __init__(
        self, root: Path, *, size: int = SERVERS, detector: bool = True, keep: bool = False
    ) -> None:
        """Make the servers.

        Args:
            root: for the runs.
            size: runs at a time.
            detector: whether runs of the detector are asked for.
            keep: as `Bench`.
        """
        self._servers = [Server(detector=detector) for _ in range(size)]
        self.bench = Bench(root, self._servers[0], keep=keep)
        self._free: SimpleQueue[Server] = SimpleQueue()
        for server in self._servers:
            self._free.put(server)

    def run(self, tries: Sequence[Try]) -> dict[str, list[str]]:
        """Return what is wrong by the name of the try."""

        def run(each: Try) -> list[str]:
            server = self._free.get()
            try:
                return self.bench.run(each, server)
            finally:
                self._free.put(server)

        with ThreadPoolExecutor(len(self._servers)) as threads:
            found = list(threads.map(run, tries))
        return {str(each): lines for each, lines in zip(tries, found, strict=True) if lines}

    def run_group(self, name: str) -> Row:
        """Run a group; the uninterrupted run comes first where it is not there yet."""
        group, started = GROUPS[name], time.monotonic()
        whole = self.bench.whole(group.case, group.processes)
        tries = group.tries(whole)
        wrong = self.run(tries)
        return Row(name, len(tries), time.monotonic() - started, wrong, whole.flaws)

    def close(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.close()


def table(rows: Sequence[Row]) -> str:
    """Return the figures as Markdown, then the kinds of what is wrong."""
    head = "| group | fault | case | processes | tries | as uninterrupted | s |\n"
    lines = [row.cells() for row in rows]
    tries, wrong = sum(row.tries for row in rows), sum(len(row.wrong) for row in rows)
    lines.append(
        f"| all | | | | {tries} | {tries - wrong} | {sum(row.seconds for row in rows):.0f} |"
    )
    kinds = Counter(_kind(line) for row in rows for found in row.wrong.values() for line in found)
    told = [f"{count} x {kind}" for kind, count in kinds.most_common()]
    return head + "| --- " * 7 + "|\n" + "\n".join([*lines, "", *told]) + "\n"


def _kind(line: str) -> str:
    """Return a line without its numbers and values."""
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r":? expected .*", "", line))


def main(names: Sequence[str]) -> int:
    """Run groups and tries by name, print the table; returns an exit code."""
    root = Path(tempfile.mkdtemp(prefix="faults_"))
    single = not set(names) & set(GROUPS) and bool(names)
    pool, rows, failed = Pool(root, size=1 if single else SERVERS, keep=single), list[Row](), 0
    for name in names or GROUPS:
        if name in GROUPS:
            rows.append(pool.run_group(name))
            wrong = {**rows[-1].wrong, f"{name} uninterrupted": rows[-1].flaws}
        else:
            wrong = {**pool.run([Try.parse(name)])}
        told = [f"{each}: {line}\n" for each, lines in wrong.items() for line in lines]
        failed += len(told)
        sys.stdout.write("".join(told))
        sys.stdout.flush()
    pool.close()
    if rows:
        sys.stdout.write(f"\n{table(rows)}")
    sys.stdout.write(f"\nruns, and what failed: {root}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
