"""Scores of trained detectors on a study's test images, kept as files and read again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from detection.commands.tasks import load_task
from detection.data.json_files import parse_json
from detection.evaluation.match_files import match_file
from detection.evaluation.matching import MatchTable
from engine.checkpoint import prepare_output
from engine.checksum import file_digest
from engine.errors import UserError
from engine.evaluate import evaluate
from engine.files import write_file
from engine.log import RunLog
from engine.paths import exists
from engine.run_files import DETECTIONS_FILE, SCORES_FILE, WEIGHTS_FILE
from engine.run_folder import metric_numbers
from tools.lab.planned_runs import run_status
from tools.lab.study.training import Run, train_runs

_DONE = "scored.json"
R = TypeVar("R")


@dataclass(frozen=True)
class Scoring:
    """An evaluation of a detector, or of several as an ensemble, and the folder of its files.

    overrides: changes to the config of the run. annotations: COCO JSON of the scored images.
    """

    runs: tuple[Run, ...]
    overrides: tuple[str, ...]
    annotations: Path
    folder: Path


@dataclass(frozen=True)
class Scores:
    """Metrics of an evaluation by name, in [0, 1] or NaN, its speed, and the matches of its boxes.

    images_per_second: of predicting and scoring all images.
    """

    metrics: dict[str, float]
    images_per_second: float
    matches: MatchTable

    def percent(self, name: str) -> float:
        """Return a metric in percent."""
        return 100 * self.metrics[name]


def read_scores(scoring: Scoring) -> Scores | None:
    """Return the scores of an evaluation; None if it is not done, or a run of it is not.

    Raises:
        UserError: a file of it is damaged, or a run folder holds a run of another config.
    """
    speed = _speed(scoring)
    if speed is None:
        return None
    matched = match_file(scoring.folder / DETECTIONS_FILE, scoring.annotations).matches
    if "bbox" not in matched:
        raise UserError(f"{scoring.folder / 'detections.json'}: expected boxes, got none")
    return Scores(read_metrics_file(scoring.folder), speed, matched["bbox"])


def read_metrics_file(folder: Path) -> dict[str, float]:
    """Return the numbers of a folder's metrics.json, NaN for null.

    Raises:
        UserError: it is missing or damaged.
    """
    return metric_numbers(_read_object(folder / SCORES_FILE))


def is_scored(scoring: Scoring) -> bool:
    """Return whether an evaluation is done, with these overrides and the weights as they are now.

    Raises:
        UserError: a run folder holds a run of another config, or a file is damaged.
    """
    return _speed(scoring) is not None


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
        place = f"{scoring.folder.parent.name}/{scoring.folder.name}"
        log.note(f"evaluation {number} of {len(left)}: {place}")
        prepare_output(scoring.folder)
        (scoring.folder / _DONE).unlink(missing_ok=True)
        task = load_task([run.folder for run in scoring.runs], scoring.overrides)
        metrics = evaluate(task, task.config, output=scoring.folder, device=device)
        record = {**_identity(scoring), "images_per_second": metrics["images_per_second"]}
        # last: it says that all is written
        write_file(scoring.folder / _DONE, f"{json.dumps(record, indent=2)}\n")


def train_and_score(
    trainings: Sequence[Run],
    scorings: Sequence[Scoring],
    *,
    write: Callable[[], R],
    device: str | None,
    before_each: Callable[[Run], object] | None = None,
) -> R:
    """Train and evaluate what is not done, and return the report of `write`.

    The report is rewritten after each training, so that an interrupted study has one too.

    Args:
        trainings: the runs of a study, in order.
        scorings: evaluations of these; each is made as soon as its runs are done.
        write: writes the report of what is done so far.
        device: as `--device`; None picks a GPU if there is one.
        before_each: as for `train_runs`.

    Raises:
        UserError, DivergedError, InterruptedRunError: as `train_runs` and `score_all`.
    """

    def score_and_write() -> R:
        ready = [each for each in scorings if all(run_status(run) == "done" for run in each.runs)]
        score_all(ready, device=device)
        return write()

    train_runs(trainings, device=device, before_each=before_each, after_each=score_and_write)
    return score_and_write()  # an evaluation may have been interrupted


def _speed(scoring: Scoring) -> float | None:
    """Return images per second of an evaluation; None unless it is done."""
    file = scoring.folder / _DONE
    if any(run_status(run) != "done" for run in scoring.runs) or not exists(file):
        return None
    record = _read_object(file)
    speed = record.pop("images_per_second", None)
    return speed if record == _identity(scoring) and isinstance(speed, float) else None


def _identity(scoring: Scoring) -> dict[str, Any]:
    """Return what an evaluation's files depend on."""
    weights = {run.name: file_digest(run.folder / WEIGHTS_FILE) for run in scoring.runs}
    return {"overrides": list(scoring.overrides), "weights": weights}


def _read_object(path: Path) -> dict[str, Any]:
    """Return the content of one of this module's JSON files.

    Raises:
        UserError: it is missing or damaged.
    """
    content = parse_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object, got {type(content).__name__}")
    return content
