"""Reading of a run folder's scores, and of the step that they belong to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import differences
from engine.errors import UserError
from engine.log import read_metrics
from engine.paths import exists, read_text
from engine.run_files import LOG_FILE, SCORES_FILE, WEIGHTS_FILE
from engine.schema import RunConfig


@dataclass(frozen=True)
class RunScores:
    """Scores of a run folder.

    scores: of metrics.json by name; None for NaN. steps: the last logged step; None if unknown.
    scored_at: the step whose weights have these scores; None if unknown. notes: warnings to show
    with the scores.
    """

    scores: Mapping[str, float | None]
    steps: int | None
    scored_at: int | None
    notes: Sequence[str]


def read_scores(folder: Path, names: Sequence[str]) -> RunScores:
    """Read the scores of a run folder.

    Args:
        folder: the run folder.
        names: the scores that will be shown; they are validated.

    Raises:
        UserError: metrics.json or metrics.jsonl is missing, or metrics.json is not of a run.
    """
    for file in (SCORES_FILE, LOG_FILE):
        if not exists(folder / file):
            raise UserError(f"{folder / file}: expected the file of an evaluated run, got none")
    metrics = _read_metrics(folder / SCORES_FILE, names)
    lines, num_damaged = read_metrics(folder / LOG_FILE)
    evaluations = [line for line in lines if line["kind"] in ("eval", "final")]
    steps = max((line["step"] for line in lines), default=None)
    notes = []
    matching = [line["step"] for line in evaluations if _matches(line, metrics)]
    if evaluations and not matching:
        notes.append("its scores match no evaluation in metrics.jsonl")
    last_evaluation = max((line["step"] for line in evaluations), default=0)
    is_exported = exists(folder / WEIGHTS_FILE)
    if not is_exported or (steps is not None and steps > last_evaluation):
        notes.append(f"unfinished: logged up to step {steps}, evaluated up to {last_evaluation}")
    if num_damaged:
        notes.append(f"damaged lines of metrics.jsonl, skipped: {num_damaged}")
    return RunScores(metrics, steps, matching[-1] if matching else None, notes)


def check_only_seeds_differ(configs: Mapping[Path, RunConfig]) -> None:
    """Raise UserError unless the configs of runs, by folder, are the same with other seeds."""
    folders = list(configs)
    first = configs[folders[0]]
    for folder in folders[1:]:
        lines = differences(first, configs[folder])
        others = [line for line in lines if not line.startswith("seed: ")]
        if others:
            raise UserError(
                f"{folder}: expected the config of {folders[0]} with another seed, got {others[0]}"
            )
    by_seed: dict[int, Path] = {}
    for folder, config in configs.items():
        if config.seed in by_seed:
            got = f"{config.seed} in {by_seed[config.seed]} as well"
            raise UserError(f"{folder}: expected a seed of its own, got {got}")
        by_seed[config.seed] = folder


def _read_metrics(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Read metrics.json; the values of `names` are validated."""
    try:
        metrics = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        message = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(f"{path}: not valid JSON: {message}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid JSON: too many digits, or nested too deep") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path}: expected an object of scores, got {type(metrics).__name__}")
    # our files have null for NaN, and so have the lines that these are compared with
    metrics = {name: None if value != value else value for name, value in metrics.items()}
    for name in names:
        value = metrics.get(name)
        if value is not None and not _is_score(value):
            raise UserError(f"{path}: {name}: expected a number from 0 to 1, got {value!r:.60}")
    return metrics


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _matches(line: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    """Return whether an evaluation's line has the same values for all shared names."""
    shared = line.keys() & metrics.keys()
    return bool(shared) and all(line[name] == metrics[name] for name in shared)
