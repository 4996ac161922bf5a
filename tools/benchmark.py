"""Measure what the project promises: benchmark.py NAME ... [--model M] [--precision P]."""

import argparse
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command


def main() -> None:
    """Parse, measure, print a table and write it."""
    import torch

    from detection.benchmarks import BENCHMARKS
    from detection.benchmarks.settings import Settings
    from engine.files import write_file
    from engine.log import make_console
    from engine.measure import report_of, table_of

    parser = argparse.ArgumentParser(description="Measure speed and memory against the peers.")
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
    arguments = parser.parse_args()
    console = make_console()
    names = arguments.names
    if "all" in names:
        names = [each for each in BENCHMARKS if arguments.small or not each.startswith("gpu-")]
    written = arguments.output or (None if arguments.small else Path("results"))
    measured = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            measured[name] = BENCHMARKS[name](
                Settings(
                    folder=Path(folder),
                    say=console.print,
                    rounds=arguments.rounds,
                    small=arguments.small,
                    model=arguments.model,
                    precision=arguments.precision,
                )
            )
        console.print(table_of(measured[name], name), soft_wrap=False)
        if written is not None:  # after each, so that what was measured is kept
            written.mkdir(parents=True, exist_ok=True)
            date = datetime.now(tz=UTC).date()
            device = "gpu" if torch.cuda.is_available() else "cpu"
            path = written / f"benchmark_{'_'.join(arguments.names)}_{device}_{date}.md"
            write_file(path, report_of(measured, command=" ".join(sys.argv)))
            console.print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
