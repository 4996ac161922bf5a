"""Fault-injection matrix: `python -m tests.faults.matrix [GROUP | TRIAL ...]`; default all groups.

Groups are the keys of `GROUPS`; a trial has a name such as `apart:1:kill@57` (see `Trial`).
Problems are listed by trial. The folder of a failed trial is kept, with the processes' output and
`interrupted/injected.json`, the point at which the fault was injected.
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

from tests.faults.fault_injection import Fault
from tests.faults.fork_server import Server
from tests.faults.trials import ReferenceRun, Trial, TrialRunner, writes

SERVERS = 3
"""Concurrent runs; more than cores, because runs often wait for workers to end."""


@dataclass(frozen=True)
class Group:
    """A group of trials of one kind.

    what: description for the table.
    case, processes: of all trials.
    faults: creates the faults, given the uninterrupted run.
    chain: as in `Trial`.
    """

    what: str
    case: str
    processes: int
    faults: Callable[[ReferenceRun], Iterable[Fault]]
    chain: bool = False

    def trials(self, reference: ReferenceRun) -> list[Trial]:
        """Return the trials in order."""
        return [
            Trial(self.case, self.processes, fault, self.chain) for fault in self.faults(reference)
        ]


def spread(numbers: Sequence[int], count: int) -> list[int]:
    """Return `count` evenly spaced numbers; all if there are fewer."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[(2 * n + 1) * len(numbers) // (2 * count)] for n in range(count)]


def at_writes(do: str, count: int = 10**6) -> Callable[[ReferenceRun], list[Fault]]:
    """Return a function that creates a fault at every change of the folder, or at `count`."""

    def faults(reference: ReferenceRun) -> list[Fault]:
        points = reference.points[0]
        numbers = writes(points)
        if do == "torn":
            numbers = [number for number in numbers if points[number - 1].name == "write"]
        if do in ("full", "filled"):  # renaming and removing need no space
            numbers = [n for n in numbers if points[n - 1].name in ("open", "write", "mkdir")]
        return [Fault(do, number) for number in spread(numbers, count)]

    return faults


def signals(
    *, count: int, ranks: Sequence[int] = (0,), again: int = 0
) -> Callable[[ReferenceRun], list[Fault]]:
    """Return a function that spreads SIGTERM and SIGINT, to process and group, over a run."""

    def faults(reference: ReferenceRun) -> list[Fault]:
        made = []
        for index in range(count):
            rank = ranks[index // 4 % len(ranks)]
            points = reference.points[rank]
            number = (2 * index + 1) * len(points) // (2 * count) + 1
            do, group = ("term", "int")[index % 2], index % 4 > 1
            made.append(Fault(do, number, rank=rank, group=group, again=again * (1 + index % 3)))
        return made

    return faults


def in_workers(reference: ReferenceRun) -> list[Fault]:
    """Kill a worker, and signal the group from it, during training and evaluation."""
    del reference
    places = [("train", n) for n in (1, 5, 10, 15)] + [("val", n) for n in (1, 3, 5)]
    kills = [Fault("kill", number, channel) for channel, number in places]
    both = [("term", "train"), ("int", "train"), ("term", "val"), ("int", "val")]
    return kills + [Fault(do, n, channel, group=True) for do, channel in both for n in (2, 4)]


def in_events(reference: ReferenceRun) -> list[Fault]:
    """Inject faults when TensorBoard's file is written."""
    points = spread(range(1, reference.events), 3)
    return [Fault(do, point, "events") for do in ("kill", "full", "filled") for point in points]


def at_the_end(reference: ReferenceRun) -> list[Fault]:
    """Kill the run at every change of its folder after the last step."""
    numbers = writes(reference.points[0])
    ends = [n for n in numbers if reference.points[0][n - 1].step == reference.last_step]
    return [Fault("kill", number) for number in ends]


def killed_peer(reference: ReferenceRun) -> list[Fault]:
    """Kill the second process, which writes nothing, in steps and evaluations."""
    return [Fault("kill", n, rank=1) for n in spread(range(1, len(reference.points[1]) + 1), 5)]


def chained(reference: ReferenceRun) -> list[Fault]:
    """Kill the run and each resumed run after more points than there are between two saves."""
    del reference
    return [Fault("kill", number) for number in range(70, 120, 7)]


GROUPS = {
    "kill-equal": Group("SIGKILL at writes", "equal", 1, at_writes("kill", 24)),
    "kill-apart": Group("SIGKILL at every write", "apart", 1, at_writes("kill")),
    "kill-late": Group("SIGKILL at writes", "late", 1, at_writes("kill", 30)),
    "kill-last": Group("SIGKILL at every write after the last step", "last", 1, at_the_end),
    "kill-workers": Group("SIGKILL at writes", "workers", 1, at_writes("kill", 12)),
    "kill-chain": Group("SIGKILL, and again of each resumed run", "apart", 1, chained, chain=True),
    "torn-apart": Group("SIGKILL in the middle of a write", "apart", 1, at_writes("torn", 20)),
    "full-apart": Group("ENOSPC once, at every write", "apart", 1, at_writes("full")),
    "filled-late": Group("ENOSPC from a write on", "late", 1, at_writes("filled", 30)),
    "events": Group("SIGKILL, ENOSPC in TensorBoard's thread", "equal", 1, in_events),
    "signals-equal": Group("signals to process, group", "equal", 1, signals(count=16)),
    "signals-last": Group("signals to process, group", "last", 1, signals(count=24)),
    "signals-late": Group("signals to process, group", "late", 1, signals(count=16)),
    "signals-workers": Group("signals to process, group", "workers", 1, signals(count=24)),
    "twice-apart": Group("two signals", "apart", 1, signals(count=18, again=1)),
    "in-workers": Group("SIGKILL of a worker, signals to the group", "workers", 1, in_workers),
    "kill-two": Group("SIGKILL of process 0 at writes", "apart", 2, at_writes("kill", 12)),
    "kill-peer": Group("SIGKILL of process 1", "apart", 2, killed_peer),
    "full-two": Group("ENOSPC once", "apart", 2, at_writes("full", 8)),
    "signals-two": Group("signals to 0, 1, group", "late", 2, signals(count=16, ranks=(0, 1))),
    "kill-detector": Group("SIGKILL at writes", "detector", 1, at_writes("kill", 12)),
    "full-detector": Group("ENOSPC once", "detector", 1, at_writes("full", 8)),
    "signals-detector": Group("signals", "detector_workers", 1, signals(count=8)),
    "detector-two": Group("SIGKILL of process 0", "detector", 2, at_writes("kill", 4)),
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    wrong: problems by trial. defects: problems of the uninterrupted run itself.
    """

    name: str
    trials: int
    seconds: float
    wrong: dict[str, list[str]]
    defects: tuple[str, ...]

    def cells(self) -> str:
        """Return the row as Markdown."""
        group = GROUPS[self.name]
        cells = [self.name, group.what, group.case, group.processes, self.trials]
        ends = [self.trials - len(self.wrong), f"{self.seconds:.0f}"]
        return "| " + " | ".join(str(cell) for cell in [*cells, *ends]) + " |"


class Pool:
    """Servers that share the trials of a group."""

    def __init__(
        self, root: Path, *, size: int = SERVERS, detector: bool = True, keep: bool = False
    ) -> None:
        """Start the servers.

        Args:
            root: folder for the runs.
            size: number of concurrent runs.
            detector: whether runs of the detector are needed.
            keep: as for `TrialRunner`.
        """
        self._servers = [Server(detector=detector) for _ in range(size)]
        self.runner = TrialRunner(root, self._servers[0], keep=keep)
        self._free: SimpleQueue[Server] = SimpleQueue()
        for server in self._servers:
            self._free.put(server)

    def run(self, trials: Sequence[Trial]) -> dict[str, list[str]]:
        """Run trials; return the problems by the name of the trial."""

        def run(each: Trial) -> list[str]:
            server = self._free.get()
            try:
                return self.runner.run(each, server)
            finally:
                self._free.put(server)

        with ThreadPoolExecutor(len(self._servers)) as threads:
            found = list(threads.map(run, trials))
        return {str(each): lines for each, lines in zip(trials, found, strict=True) if lines}

    def run_group(self, name: str) -> Row:
        """Run a group, after the uninterrupted run if that was not run yet."""
        group, started = GROUPS[name], time.monotonic()
        reference = self.runner.reference(group.case, group.processes)
        trials = group.trials(reference)
        wrong = self.run(trials)
        return Row(name, len(trials), time.monotonic() - started, wrong, reference.defects)

    def close(self) -> None:
        """Stop the servers."""
        for server in self._servers:
            server.close()


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, then the problems by kind."""
    head = "| group | fault | case | processes | trials | as uninterrupted | s |\n"
    lines = [row.cells() for row in rows]
    trials, wrong = sum(row.trials for row in rows), sum(len(row.wrong) for row in rows)
    lines.append(
        f"| all | | | | {trials} | {trials - wrong} | {sum(row.seconds for row in rows):.0f} |"
    )
    kinds = Counter(_kind(line) for row in rows for found in row.wrong.values() for line in found)
    kinds_text = [f"{count} x {kind}" for kind, count in kinds.most_common()]
    return head + "| --- " * 7 + "|\n" + "\n".join([*lines, "", *kinds_text]) + "\n"


def _kind(line: str) -> str:
    """Return a problem without its numbers and values."""
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r":? expected .*", "", line))


def main(names: Sequence[str]) -> int:
    """Run groups and trials by name and print the table; return an exit code."""
    root = Path(tempfile.mkdtemp(prefix="faults_"))
    single = not set(names) & set(GROUPS) and bool(names)
    pool, rows, failed = Pool(root, size=1 if single else SERVERS, keep=single), list[Row](), 0
    for name in names or GROUPS:
        if name in GROUPS:
            rows.append(pool.run_group(name))
            wrong = {**rows[-1].wrong, f"{name} uninterrupted": rows[-1].defects}
        else:
            wrong = {**pool.run([Trial.parse(name)])}
        problems = [f"{each}: {line}\n" for each, lines in wrong.items() for line in lines]
        failed += len(problems)
        sys.stdout.write("".join(problems))
        sys.stdout.flush()
    pool.close()
    if rows:
        sys.stdout.write(f"\n{table(rows)}")
    sys.stdout.write(f"\nruns, and what failed: {root}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
