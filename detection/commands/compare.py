"""Command `compare`: print the scores of several runs in one table.

Usage: resdet compare RUN RUN ... (tools/compare.py)
"""

from pathlib import Path

from engine.cli import CommandParser

# the metrics that get a column, if any of the runs has them
SCORES = (
    *("ap", "ap50", "ap75", "mask_ap", "top1", "top5"),
    *("localization_error", "top5_localization_error", "baseline_localization_error"),
)


def main() -> None:
    """Parse the command line, read the runs, print the table."""
    parser = CommandParser(description="Print the scores of runs in one table.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    folders = parser.parse_args().runs

    from rich.table import Table

    from engine.log import make_console
    from engine.scores import read_scores

    runs = {folder: read_scores(folder, SCORES) for folder in folders}
    # columns: only metrics that a run has, in the order of SCORES
    names = [name for name in SCORES if any(name in run.scores for run in runs.values())]
    table = Table("run", "steps", "scored at", *names)
    for folder, run in runs.items():
        steps = ["-" if step is None else str(step) for step in (run.steps, run.scored_at)]
        values = [run.scores.get(name) for name in names]  # None also if there are no objects
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        table.add_row(str(folder), *steps, *cells)
    show = make_console().print
    show(table, soft_wrap=False)
    for folder, run in runs.items():
        for note in run.notes:
            show(f"{folder}: {note}", highlight=False)
