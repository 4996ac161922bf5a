"""The benchmark.py command: measure speed and memory against other libraries.

benchmark.py NAME ... [--model M] [--precision P]. It prints a table and writes it to results/.
"""

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
    """Parse the command line, check the requirements, measure, print and write the tables."""
    parser = CommandParser(description="Measure speed and memory against other libraries.")
    parser.add_argument(
        "names",
        nargs="+",
        choices=[*BENCHMARKS, "all"],
        metavar="NAME",
        help=f"one of {', '.join(BENCHMARKS)}; or all, the ones that need no GPU",
    )
    parser.add_argument("--model", help="r101_c4, r50_fpn ... (default: all of the benchmark)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: both")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements (default: 5)")
    parser.add_argument(
        "--small", action="store_true", help="only check, within seconds, that both sides agree"
    )
    parser.add_argument("--images", type=int, help="images of `predict` (default: 2000)")
    parser.add_argument("--output", type=Path, help="folder for the tables (default: results)")
    arguments = parser.parse_args()
    on_cpu = [name for name, each in BENCHMARKS.items() if not each.on_gpu]
    # "all" stands for the benchmarks on the CPU
    names = [n for name in arguments.names for n in (on_cpu if name == "all" else [name])]
    if arguments.rounds < 1:
        raise UserError(f"--rounds: expected at least 1, got {arguments.rounds}")
    # check all benchmarks before the first one runs, because they take long
    for name in names:
        BENCHMARKS[name].check_options(name, model=arguments.model, precision=arguments.precision)
    for name in names:
        BENCHMARKS[name].check_requirements(name, small=arguments.small)
    _measure(names, arguments)


def _measure(names: list[str], arguments: Namespace) -> None:
    from backbones.images import quiet_opencv
    from engine.checkpoint import prepare_output
    from engine.distributed import pick_device
    from engine.files import write_file
    from engine.log import make_console
    from engine.memory import keep_freed_memory
    from tools.lab.benchmarks.measure import report_of, table_of
    from tools.lab.benchmarks.settings import Settings

    device = pick_device(None if any(BENCHMARKS[name].on_gpu for name in names) else "cpu")
    quiet_opencv()  # this and the next, as the training commands do
    if device.type == "cpu":
        keep_freed_memory()
    output = arguments.output or (None if arguments.small else Path("results"))
    if output is not None:
        prepare_output(output)
    console, measured = make_console(), {}
    chosen = {
        key: getattr(arguments, key) for key in ("rounds", "small", "model", "precision", "images")
    }
    for number, name in enumerate(names, start=1):
        console.print(f"benchmark {number} of {len(names)}: {name}")
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(folder=Path(folder), log=console.print, output=output, **chosen)
            rows = BENCHMARKS[name].run(settings)
        if arguments.small:  # its times mean nothing: drop the targets
            rows = [replace(row, promised=None, aim=None) for row in rows]
        measured[name] = rows
        console.print(table_of(rows, name), soft_wrap=False)
        console.print(f"{name} took {time.monotonic() - start:.0f} s")
        if output is not None:  # after each benchmark: an interruption loses only the current one
            date = str(datetime.now(tz=UTC).date())
            parts = [*arguments.names, arguments.model, arguments.precision, device.type, date]
            path = output / f"benchmark_{'_'.join(filter(None, parts))}.md"
            write_file(path, report_of(measured, command=" ".join(sys.argv), device=device))
            console.print(f"wrote {path}")
