"""Command `compare`: print the scores of several runs, and whether they differ by more than chance.

Usage: resdet compare RUN RUN ... (tools/compare.py)
       resdet compare FILE.json FILE.json data.val.annotations=PATH

Two runs on the same images get the paired difference of their AP, with its interval and p-value.
Three or more runs whose configs differ only in the seed get mean and standard deviation.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import CommandParser, split_arguments
from engine.errors import UserError
from engine.run_files import CONFIG_FILE, DETECTIONS_FILE

if TYPE_CHECKING:
    from rich.table import Table

    from engine.schema import RunConfig
    from engine.scores import RunScores

# the metrics that get a column, if any of the runs has them
SCORES = (
    *("ap", "ap50", "ap75", "mask_ap", "top1", "top5"),
    *("localization_error", "top5_localization_error", "baseline_localization_error"),
)


def main() -> None:
    """Parse the command line, read the runs, print the tables."""
    parser = CommandParser(description="Print the scores of runs, and how sure their order is.")
    parser.add_argument(
        "positional",
        nargs="+",
        metavar="RUN | FILE.json | key=value",
        help="run folders or COCO results files; with files, data.val.annotations=PATH",
    )
    paths, overrides = split_arguments(parser.parse_args().positional)
    if not paths:
        raise UserError("command line: expected RUN or FILE.json, got none")

    from engine.log import make_console
    from engine.paths import is_file
    from engine.scores import read_scores

    show = make_console().print
    folders = [path for path in paths if not (path.suffix == ".json" and is_file(path))]
    if len(folders) < len(paths) != 2:
        raise UserError(f"command line: expected two results files or runs, got {len(paths)}")
    runs = {folder: read_scores(folder, SCORES) for folder in folders}
    if runs:
        show(_scores_table(runs), soft_wrap=False)
    for folder, run in runs.items():
        for note in run.notes:
            show(f"{folder}: {note}", highlight=False)
    try:
        if len(paths) == 2:
            for part in _paired_difference(paths, overrides):
                show(part, soft_wrap=False, highlight=False)
        elif len(runs) > 2 and len(runs) == len(paths):
            show(_spread_table(runs), soft_wrap=False)
    except UserError as error:
        if not runs:
            raise
        what = "paired difference" if len(paths) == 2 else "mean over seeds"
        show(f"no {what}: {error}", highlight=False)


def _scores_table(runs: Mapping[Path, "RunScores"]) -> "Table":
    from rich.table import Table

    # columns: only metrics that a run has, in the order of SCORES
    names = [name for name in SCORES if any(name in run.scores for run in runs.values())]
    table = Table("run", "steps", "scored at", *names)
    for folder, run in runs.items():
        steps = ["-" if step is None else str(step) for step in (run.steps, run.scored_at)]
        values = [run.scores.get(name) for name in names]  # None also if there are no objects
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        table.add_row(str(folder), *steps, *cells)
    return table


def _spread_table(runs: Mapping[Path, "RunScores"]) -> "Table":
    """Return mean and standard deviation of the scores that all runs have.

    Raises:
        UserError: a config cannot be read, or differs in more than the seed.
    """
    from rich.table import Table

    from detection.evaluation.uncertainty import spread
    from engine.scores import check_only_seeds_differ

    check_only_seeds_differ({folder: _config_of(folder) for folder in runs})
    table = Table("metric", "mean", "std", title=f"{len(runs)} seeds, in percent")
    for name in SCORES:
        values = [run.scores.get(name) for run in runs.values()]
        known = [100 * value for value in values if value is not None]
        if len(known) == len(values):
            mean, std, _ = spread(known)
            table.add_row(name, f"{mean:.2f}", f"{std:.2f}")
    return table


def _paired_difference(paths: Sequence[Path], overrides: Sequence[str]) -> list["Table | str"]:
    """Return tables of the difference of boxes, masks or both, and notes on what was read.

    Raises:
        UserError: a file is missing or malformed, or the two were not scored on the same images.
    """
    from rich.table import Table

    from detection.evaluation.match_files import match_file
    from detection.evaluation.uncertainty import METRICS, RESAMPLES, paired_difference

    files = [match_file(*_files_of(path, overrides)) for path in paths]
    parts: list[Table | str] = [
        f"{path}: {note}" for path, file in zip(paths, files, strict=True) for note in file.notes
    ]
    first, second = (file.matches for file in files)
    kinds = [kind for kind in first if kind in second]
    if not kinds:
        raise UserError(f"{paths[1]}: expected {' or '.join(first)}, got {' and '.join(second)}")
    for kind in kinds:
        numbers = paired_difference(first[kind], second[kind])
        what = "boxes" if kind == "bbox" else "masks"
        images = f"{len(first[kind].image_ids)} images, {RESAMPLES} resamples"
        table = Table(
            *("metric", "first", "second", "difference", "95 % interval", "p"),
            title=f"{what}, second minus first, in percent ({images})",
        )
        for name in METRICS:
            before, after, value, low, high, p_value = numbers[name]
            cells = [f"{100 * before:.2f}", f"{100 * after:.2f}", f"{100 * value:+.2f}"]
            interval = f"{100 * low:+.2f} to {100 * high:+.2f}"
            table.add_row(name, *cells, interval, f"{p_value:.3f}")
        parts.append(table)
    return parts


def _files_of(path: Path, overrides: Sequence[str]) -> tuple[Path, Path]:
    """Return the results and the annotations of a run folder or a results file."""
    from detection.commands.schemas import ALL_SCHEMAS
    from detection.config import DetectionConfig
    from engine.config import parse_config
    from engine.paths import exists, is_file

    results = path if path.suffix == ".json" and is_file(path) else path / DETECTIONS_FILE
    if not exists(results):
        raise UserError(f"{results}: expected the detections of an evaluated run, got none")
    if overrides or results == path:
        config = parse_config({}, overrides, schemas=ALL_SCHEMAS, source="command line")
    else:
        config = _config_of(path)
    annotations = config.data.val.annotations if isinstance(config, DetectionConfig) else None
    if not annotations:
        raise UserError(f"{path}: expected data.val.annotations=PATH as well, got none")
    return results, Path(annotations)


def _config_of(folder: Path) -> "RunConfig":
    from detection.commands.schemas import ALL_SCHEMAS
    from engine.config import load_config

    return load_config(folder / CONFIG_FILE, schemas=ALL_SCHEMAS)
