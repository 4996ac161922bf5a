"""Set finished runs side by side: compare.py RUN RUN ..."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import CommandParser, run_command
from engine.errors import UserError

SCORES = (
    *("ap", "ap50", "ap75", "mask_ap", "top1", "top5"),
    *("localization_error", "top5_localization_error", "baseline_localization_error"),
)


def main() -> None:
    """Parse, read the runs, print the table."""
    parser = CommandParser(description="Print the scores of finished runs in one table.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    runs = parser.parse_args().runs

    from rich.table import Table

    from engine.log import make_console

    results = {run: _read(run) for run in runs}
    names = [name for name in SCORES if any(name in scores for _, scores in results.values())]
    table = Table("run", "steps", *names)
    for run, (steps, scores) in results.items():
        values = [scores.get(name) for name in names]  # null: there was nothing to find
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        table.add_row(str(run), str(steps), *cells)
    make_console().print(table, soft_wrap=False)


def _read(run: Path) -> tuple[int, dict[str, Any]]:
    """Return the steps that a run took, and its final metrics."""
    try:
        scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
        steps = max((json.loads(line)["step"] for line in text.splitlines()), default=0)
    except OSError as error:
        message = f"{error.filename}: expected that of a finished run: {error.strerror}"
        raise UserError(message) from error
    except json.JSONDecodeError as error:
        message = f"{run}: expected JSON in metrics.json and metrics.jsonl, got: {error}"
        raise UserError(message) from error
    return steps, scores


if __name__ == "__main__":
    run_command(main)
