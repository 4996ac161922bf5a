"""Measure what the project promises: benchmark.py NAME ... [--model M] [--precision P]."""

import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from engine.cli import CommandParser
from engine.errors import UserError
from tools.lab.benchmarks import BENCHMARKS


def main() -> None:
    """Parse, look for what is needed, measure, print a table and write it."""
    parser = CommandParser(description="Measure speed and memory against the peers.")
    parser.add_argument(
        "names",
        nargs="+",
        choices=[*BENCHMARKS, "all"],
        metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)}, or all that need no GPU",
    )
    parser.add_argument("--model", help="r101_c4 or r50_fpn ... (default: each)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: both")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements (default 5)")
    parser.add_argument("--small", action="store_true", help="check that results agree, in seconds")
    parser.add_argument("--output", type=Path, help="folder of the table (default: results)")
    words = parser.parse_args()
    on_cpu = [name for name, each in BENCHMARKS.items() if not each.on_gpu]
    names = [n for word in words.names for n in (on_cpu if word == "all" else [word])]
    if words.rounds < 1:
        raise UserError(f"--rounds: expected at least 1, got {words.rounds}")
    for name in names:
        BENCHMARKS[name].check(name, model=words.model, precision=words.precision)
    for name in names:
        BENCHMARKS[name].look_for_needs(name, small=words.small)
    _measure(names, words)


def _measure(names: list[str], words: Namespace) -> None:
    from backbones.images import quiet_opencv
    from engine.checkpoint import prepare_output
    from engine.distributed import pick_device
    from engine.files import write_file
    from engine.log import make_console
    from engine.memory import keep_freed_memory
    from tools.lab.benchmarks.measure import report_of, table_of
    from tools.lab.benchmarks.settings import Settings

    device = pick_device(None if any(BENCHMARKS[name].on_gpu for name in names) else "cpu")
    quiet_opencv()  # these two as in commands
    if device.type == "cpu":
        keep_freed_memory()
    output = words.output or (None if words.small else Path("results"))
    if output is not None:
        prepare_output(output)
    console, measured = make_console(), {}
    chosen = {key: getattr(words, key) for key in ("rounds", "small", "model", "precision")}
    for number, name in enumerate(names, start=1):
        console.print(f"benchmark {number} of {len(names)}: {name}")
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(folder=Path(folder), say=console.print, output=output, **chosen)
            rows = BENCHMARKS[name].run(settings)
        if words.small:  # whose times say nothing
            rows = [replace(row, promised=None, aim=None) for row in rows]
        measured[name] = rows
        console.print(table_of(rows, name), soft_wrap=False)
        console.print(f"{name} took {time.monotonic() - start:.0f} s")
        if output is not None:  # after each, so that what was measured is kept
            date = str(datetime.now(tz=UTC).date())
            said = [*words.names, words.model, words.precision, device.type, date]
            path = output / f"benchmark_{'_'.join(filter(None, said))}.md"
            write_file(path, report_of(measured, command=" ".join(sys.argv), device=device))
            console.print(f"wrote {path}")
