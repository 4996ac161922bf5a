"""What a backbone is worth: short trainings of all four tasks, on it and on random weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from backbones.images import enlarge, read_image
from detection.commands.schemas import ALL_SCHEMAS
from detection.commands.tasks import build_task, check_weights
from detection.visualize import READABLE_SIDE, captioned, mosaic, write_picture
from engine.checkpoint import prepare_output
from engine.config import load_config
from engine.errors import UserError
from engine.files import write_file
from engine.log import RunLog
from engine.paths import is_file, names_in, read_text
from engine.schema import Config, PathText, RunConfig
from tools.lab.planned_runs import PlannedRun, stage_of, train_planned

Run = PlannedRun[RunConfig]


class TrialConfig(Config):
    """One task's short training."""

    config: PathText
    """Its config, relative to the folder of this file."""
    score: str
    """The metric that is reported, in [0, 1], higher is better."""
    overrides: tuple[str, ...] = ()
    """`a.b.c=value`, changes to that config."""


class TransferConfig(Config):
    """What configs/transfer.yaml holds."""

    trials: dict[str, TrialConfig]
    """By task, in the order of the table."""


@dataclass(frozen=True)
class Trial:
    """A task's two runs: with the backbone, and from random weights."""

    name: str
    score: str
    pretrained: Run
    random: Run

    def scores(self) -> tuple[float, float]:
        """Return the scores with the backbone and without, once both runs are done.

        NaN where there was nothing to find.

        Raises:
            UserError: a run has no such score.
        """
        with_it, without = (_score_of(run, self.score) for run in (self.pretrained, self.random))
        return with_it, without


def plan_trials(
    file: Path, backbone: Path, *, output: Path, overrides: Sequence[str] = ()
) -> list[Trial]:
    """Return the trials of a file.

    Args:
        file: configs/transfer.yaml, or one like it.
        backbone: weights for `model.backbone.weights`.
        output: folder that receives a folder for each run.
        overrides: `task.a.b.c=value` for one task, `a.b.c=value` for all.

    Raises:
        UserError: a file is missing, or a key, type or value is wrong.
    """
    if not is_file(backbone):
        raise UserError(f"{backbone}: expected a file of weights, got none")
    transfer = load_config(file, schemas={"transfer": TransferConfig})
    trials = []
    for name, trial in transfer.trials.items():
        own = [
            word.removeprefix(f"{name}.")
            for word in overrides
            if word.split(".")[0] not in transfer.trials or word.startswith(f"{name}.")
        ]
        weights = f"model.backbone.weights={json.dumps(str(backbone))}"
        runs = [
            PlannedRun(
                load_config(
                    file.parent / trial.config, [*trial.overrides, *own, *more], schemas=ALL_SCHEMAS
                ),
                output / f"{name}{suffix}",
            )
            for suffix, more in (("", [weights]), ("_random", ["model.backbone.weights=null"]))
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
    """Train what is not done, write report.md and transfer.png, return the table.

    Args:
        trials: of `plan_trials`.
        output: folder of the report.
        backbone: its name in the report.
        device: as `--device`; None picks a GPU when there is one.

    Raises:
        UserError: bad data or weights, or a folder holds a run of another config.
    """
    log = RunLog(None, is_main=True)
    # the backbone first: weights that do not fit show before anything is trained
    runs = [run for trial in trials for run in (trial.pretrained, trial.random)]
    for number, run in enumerate(runs, start=1):
        if stage_of(run) == "done":
            log.note(f"run {number} of {len(runs)}: {run.name} is done")
            continue
        log.note(f"run {number} of {len(runs)}: {run.name}")
        train_planned(run, build_task, device=device)
    rows = [_row(trial) for trial in trials]
    header = ("task", "steps", "score, in percent", "random weights", "this backbone", "gain")
    prepare_output(output)
    lines = [header, ("---",) * len(header), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    write_file(output / "report.md", f"# What {backbone} is worth\n\n{text}\n")
    write_picture(output / "transfer.png", mosaic([_image(trial) for trial in trials], columns=2))
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    return table


def _score_of(run: Run, name: str) -> float:
    path = run.folder / "metrics.json"
    try:
        value = json.loads(read_text(path))[name]
        return float("nan") if value is None else float(value)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: expected the score {name} of a finished run, got none") from error


def _row(trial: Trial) -> tuple[str, ...]:
    with_it, without = trial.scores()
    numbers = (f"{100 * without:.1f}", f"{100 * with_it:.1f}", f"{100 * (with_it - without):+.1f}")
    steps = str(trial.pretrained.config.loop.max_steps)
    return (trial.name, steps, trial.score, *numbers)


def _image(trial: Trial) -> np.ndarray:
    """Return the first drawn prediction of the run with the backbone, under its score."""
    folder = trial.pretrained.folder / "pictures"
    drawings = names_in(folder, "*.png")
    if not drawings:
        raise UserError(f"{folder}: expected drawings of a finished run, got none")
    with_it, without = trial.scores()
    caption = f"{trial.name}: {trial.score} {100 * with_it:.1f} (random {100 * without:.1f})"
    drawn = read_image(folder / drawings[0])
    # else the caption would not fit
    return captioned(enlarge(drawn, drawn.shape[1], wanted=READABLE_SIDE), caption)
