"""Scores of trained detectors on a study's test images, kept as files and read again."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detection.commands.tasks import load_task
from detection.evaluation.match_files import match_file
from detection.evaluation.matching import MatchTable
from engine.checkpoint import prepare_output
from engine.errors import UserError
from engine.evaluate import evaluate
from engine.files import write_file
from engine.log import RunLog
from engine.paths import exists, read_bytes, read_text
from tools.lab.planned_runs import PlannedRun, run_status

_DONE = "scored.json"


@dataclass(frozen=True)
class Scoring:
    """An evaluation of a detector, or of several as an ensemble, and the folder of its files.

    overrides: changes to the config of the run. annotations: COCO JSON of the scored images.
    """

    runs: tuple[PlannedRun[Any], ...]
    overrides: tuple[str, ...]
    annotations: Path
    folder: Path


@dataclass(frozen=True)
class Scores:
    """Metrics of an evaluation by name, in [0, 1] or NaN, and the matches of its boxes."""

    metrics: dict[str, float]
    matches: MatchTable


def read_scores(scoring: Scoring) -> Scores | None:
    """Return the scores of an evaluation; None if it is not done, or a run of it is not.

    Raises:
        UserError: a file of it is damaged, or a run folder holds a run of another config.
    """
    if not is_scored(scoring):
        return None
    path = scoring.folder / "metrics.json"
    try:
        values = json.loads(read_text(path)).items()
        metrics = {
            name: float("nan") if value is None else float(value)
            for name, value in values
            if not isinstance(value, str)
        }
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, UserError):  # of read_text; UserError is a ValueError
            raise
        raise UserError(f"{path}: expected an object of scores, got something else") from error
    matched = match_file(scoring.folder / "detections.json", scoring.annotations).matches
    if "bbox" not in matched:
        raise UserError(f"{scoring.folder / 'detections.json'}: expected boxes, got none")
    return Scores(metrics, matched["bbox"])


def is_scored(scoring: Scoring) -> bool:
    """Return whether an evaluation is done, with these overrides and the weights as they are now.

    Raises:
        UserError: a run folder holds a run of another config.
    """
    if any(run_status(run) != "done" for run in scoring.runs):
        return False
    file = scoring.folder / _DONE
    return exists(file) and read_text(file) == _identity(scoring)


def score_all(scorings: Sequence[Scoring], *, device: str | None = None) -> None:
    """Evaluate what is not done yet, and keep metrics.json and detections.json of each.

    Args:
        scorings: evaluations of runs that are done.
        device: as `--device`; None picks a GPU if there is one.

    Raises:
        UserError: a file is missing or damaged, or an override is wrong.
    """
    log = RunLog(None, is_main=True)
    left = [scoring for scoring in scorings if not is_scored(scoring)]
    for number, scoring in enumerate(left, start=1):
        log.note(f"evaluation {number} of {len(left)}: {scoring.folder.name}")
        prepare_output(scoring.folder)
        (scoring.folder / _DONE).unlink(missing_ok=True)
        task = load_task([run.folder for run in scoring.runs], scoring.overrides)
        evaluate(task, task.config, output=scoring.folder, device=device)
        write_file(scoring.folder / _DONE, _identity(scoring))  # last: it says that all is written


def _identity(scoring: Scoring) -> str:
    """Return what an evaluation's files depend on, as JSON."""
    weights = {
        run.name: hashlib.sha256(read_bytes(run.folder / "model.safetensors")).hexdigest()
        for run in scoring.runs
    }
    content = {"overrides": scoring.overrides, "weights": weights}
    return f"{json.dumps(content, indent=2, ensure_ascii=False)}\n"
