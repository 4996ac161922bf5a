"""Set finished runs side by side: compare.py RUN RUN ..."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command
from engine.errors import UserError

SCORES = (
    *("ap", "ap50", "ap75", "top1", "top5"),
    *("localization_error", "top5_localization_error", "baseline_localization_error"),
)


def main() -> None:
    """Parse, read the runs, print the table."""
    parser = argparse.ArgumentParser(description="Print the scores of finished runs in one table.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    runs = parser.parse_args().runs

    from rich.table import Table

    from engine.log import make_console

    results = {run: _read(run) for run in runs}
    names = [name for name in SCORES if any(name in scores for _, scores in results.values())]
    table = Table("run", "steps", *names)
    for run, (steps, scores) in results.items():
        cells = [f"{100 * scores[name]:.1f}" if name in scores else "-" for name in names]
        table.add_row(str(run), str(steps), *cells)
    make_console().print(table, soft_wrap=False)


def _read(run: Path) -> tuple[int, dict[str, Any]]:
    """Return the steps that a run took, and its final metrics."""
    try:
        scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        message = f"{error.filename}: expected that of a finished run: {error.strerror}"
        raise UserError(message) from error
    except json.JSONDecodeError as error:
        raise UserError(f"{run / 'metrics.json'}: expected JSON, got: {error}") from error
    return max(json.loads(line)["step"] for line in lines), scores


if __name__ == "__main__":
    run_command(main)
