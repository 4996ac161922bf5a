"""Short trainings of all four tasks, from a pretrained backbone and from random weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from backbones.images import enlarge, read_image
from detection.commands.schemas import ALL_SCHEMAS
from detection.commands.tasks import build_task, check_weights
from detection.visualize import READABLE_SIDE, captioned, mosaic, write_image
from engine.checkpoint import prepare_output
from engine.config import load_config
from engine.errors import UserError
from engine.files import write_file
from engine.log import RunLog
from engine.paths import is_file, names_in, read_text
from engine.run_files import SCORES_FILE
from engine.schema import Config, PathText, RunConfig
from tools.lab.planned_runs import PlannedRun, run_status, train_or_resume
from tools.lab.tables import console_table, markdown_table

Run = PlannedRun[RunConfig]

HEADINGS = ("task", "steps", "score, in percent", "random weights", "this backbone", "gain")


class TrialConfig(Config):
    """The short training of one task."""

    config: PathText
    """Config file, relative to the folder of the file that holds this key."""
    score: str
    """Metric of the report, in [0, 1]; higher is better."""
    overrides: tuple[str, ...] = ()
    """Changes to that config, each `a.b.c=value`."""


class TransferConfig(Config):
    """The content of configs/transfer.yaml."""

    trials: dict[str, TrialConfig]
    """Trials by task, in the order of the table."""


@dataclass(frozen=True)
class Trial:
    """The two runs of a task: from the pretrained backbone, and from random weights."""

    name: str
    score: str
    pretrained: Run
    random: Run

    def scores(self) -> tuple[float, float]:
        """Return the scores from the backbone and from random weights; both runs must be done.

        A score is NaN if metrics.json holds null, because there was nothing to score.

        Raises:
            UserError: a run has no such score.
        """
        pretrained, random = (_score_of(run, self.score) for run in (self.pretrained, self.random))
        return pretrained, random


def plan_trials(
    file: Path, backbone: Path, *, output: Path, overrides: Sequence[str] = ()
) -> list[Trial]:
    """Return the trials of a config file.

    Args:
        file: configs/transfer.yaml, or a file like it.
        backbone: weights file, the value of `model.backbone.weights`.
        output: parent of the run folders.
        overrides: `task.a.b.c=value` for one task, or `a.b.c=value` for all.

    Raises:
        UserError: a file is missing, or a key, type or value is wrong.
    """
    if not is_file(backbone):
        raise UserError(f"{backbone}: expected a weights file, got none")
    transfer = load_config(file, schemas={"transfer": TransferConfig})
    trials = []
    for name, trial in transfer.trials.items():
        # An override applies to all tasks unless its first part is the name of another task.
        task_overrides = [
            override.removeprefix(f"{name}.")
            for override in overrides
            if override.split(".")[0] not in transfer.trials or override.startswith(f"{name}.")
        ]
        # quoted as JSON, which is also YAML: a path may hold characters special in YAML
        pretrained = f"model.backbone.weights={json.dumps(str(backbone))}"
        runs = [
            PlannedRun(
                load_config(
                    file.parent / trial.config,
                    [*trial.overrides, *task_overrides, *weights],
                    schemas=ALL_SCHEMAS,
                ),
                output / f"{name}{suffix}",
            )
            for suffix, weights in (
                ("", [pretrained]),
                ("_random", ["model.backbone.weights=null"]),
            )
        ]
        for run in runs:
            check_weights(run.config)
            if run.config.loop.drawn_images == 0:
                raise UserError(f"{name}: loop.drawn_images: expected at least 1, got 0")
        trials.append(Trial(name, trial.score, *runs))
    return trials


def run_trials(
    trials: Sequence[Trial], *, output: Path, backbone: Path, device: str | None = None
) -> Table:
    """Train the runs that are not done, write report.md and transfer.png, return the table.

    Args:
        trials: the result of `plan_trials`.
        output: folder of the report.
        backbone: path that the report names.
        device: as `--device`; None picks a GPU if there is one.

    Raises:
        UserError: bad data or weights, or a folder holds a run of another config.
    """
    log = RunLog(None, is_main=True)
    # The pretrained run of a task comes first: weights that do not fit fail before any training.
    runs = [run for trial in trials for run in (trial.pretrained, trial.random)]
    for number, run in enumerate(runs, start=1):
        if run_status(run) == "done":
            log.note(f"run {number} of {len(runs)}: {run.name} is done")
            continue
        log.note(f"run {number} of {len(runs)}: {run.name}")
        train_or_resume(run, build_task, device=device)
    rows = [_row(trial) for trial in trials]
    prepare_output(output)
    text = markdown_table(HEADINGS, rows)
    write_file(output / "report.md", f"# Transfer from {backbone}\n\n{text}\n")
    write_image(output / "transfer.png", mosaic([_image(trial) for trial in trials], columns=2))
    return console_table(HEADINGS, rows)


def _score_of(run: Run, name: str) -> float:
    """Return a score from the metrics.json of a finished run; NaN if it is null there."""
    path = run.folder / SCORES_FILE
    try:
        value = json.loads(read_text(path))[name]
        return float("nan") if value is None else float(value)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):  # of read_text; UserError is a ValueError
            raise
        raise UserError(f"{path}: expected the score {name} of a finished run, got none") from error


def _row(trial: Trial) -> tuple[str, ...]:
    """Return the cells of a trial, under HEADINGS."""
    pretrained, random = trial.scores()
    numbers = (
        f"{100 * random:.1f}",
        f"{100 * pretrained:.1f}",
        f"{100 * (pretrained - random):+.1f}",
    )
    steps = str(trial.pretrained.config.loop.max_steps)
    return (trial.name, steps, trial.score, *numbers)


def _image(trial: Trial) -> np.ndarray:
    """Return the first drawing of the pretrained run, captioned with both scores."""
    folder = trial.pretrained.folder / "pictures"
    drawings = names_in(folder, "*.png")
    if not drawings:
        raise UserError(f"{folder}: expected drawings of a finished run, got none")
    pretrained, random = trial.scores()
    caption = f"{trial.name}: {trial.score} {100 * pretrained:.1f} (random {100 * random:.1f})"
    drawn = read_image(folder / drawings[0])  # names_in returns names in ascending order
    # enlarged so that the caption fits
    return captioned(enlarge(drawn, drawn.shape[1], wanted=READABLE_SIDE), caption)
