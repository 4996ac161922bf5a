"""Training the runs of a study: their configs, order, curves, times and origin."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from backbones.classification.config import ClassificationConfig
from backbones.classification.task import build_classifier
from backbones.plots import plot_training_curves
from detection.commands.schemas import ALL_SCHEMAS
from detection.commands.tasks import build_task
from engine.checkpoint import prepare_output
from engine.config import load_config
from engine.distributed import pick_device
from engine.errors import UserError
from engine.files import write_file
from engine.log import RunLog, read_metrics
from engine.paths import exists, read_text
from engine.provenance import current_commit, describe_machine
from engine.run_files import LOG_FILE
from engine.schema import RunConfig
from engine.task import Task
from tools.lab.planned_runs import PlannedRun, run_status, train_or_resume
from tools.lab.study.config import TrainingConfig
from tools.lab.tables import console_table, markdown_table

Run = PlannedRun[Any]
_ORIGIN = "origin.txt"


def override(key: str, value: str | Path) -> str:
    """Return `key=value` for a text value, quoted as JSON, which is also YAML.

    A path may hold characters special in YAML.
    """
    return f"{key}={json.dumps(str(value), ensure_ascii=False)}"


def data_overrides(paths: dict[str, str], *, data: str) -> list[str]:
    """Return the overrides that set keys to paths below the folder `data`."""
    return [override(key, Path(data) / path) for key, path in paths.items()]


def chosen_seeds(seeds: Sequence[int], chosen: Sequence[int] | None) -> tuple[int, ...]:
    """Return the seeds of a scale, or those that replace them (None: none do), each once."""
    return tuple(dict.fromkeys(seeds if chosen is None else chosen))


def planned_config(
    training: TrainingConfig, overrides: Sequence[str], *, configs: Path, data: str
) -> RunConfig:
    """Return the config of a run of a study.

    Args:
        training: config file, its overrides, and paths of its data.
        overrides: further changes, the last ones.
        configs: folder that `training.config` is relative to.
        data: folder that holds the data sets.

    Raises:
        UserError: the file is missing or an override is wrong.
    """
    paths = data_overrides(training.data, data=data)
    changes = [*training.overrides, *paths, *overrides]
    return load_config(configs / training.config, changes, schemas=ALL_SCHEMAS)


def plan_table(runs: Sequence[Run]) -> Table:
    """Return each run and its status, for the console.

    Raises:
        UserError: a folder holds a run of another config.
    """
    rows = [(run.name, str(run.config.loop.max_steps), run_status(run)) for run in runs]
    done = sum(status == "done" for _, _, status in rows)
    title = f"{done} runs done, {len(runs) - done} left"
    return console_table(("run", "steps", "state"), rows, title=title)


def train_runs(
    runs: Sequence[Run],
    *,
    device: str | None,
    after_each: Callable[[], object],
    before_each: Callable[[Run], object] | None = None,
) -> None:
    """Train the runs that are not done, in order.

    Args:
        runs: the runs of a study.
        device: as `--device`; None picks a GPU if there is one.
        after_each: called after each training: it writes the report of the runs so far, so that an
            interrupted study has one too.
        before_each: called with a run before its training.

    Raises:
        UserError: bad data, or a folder holds a run of another config.
        DivergedError: too many non-finite steps in a row.
        InterruptedRunError: Ctrl-C or SIGTERM; the same call resumes.
    """
    log = RunLog(None, is_main=True)
    left = [run for run in runs if run_status(run) != "done"]
    for number, run in enumerate(left, start=1):
        log.note(f"run {number} of {len(left)}: {run.name}")
        if before_each is not None:
            before_each(run)
        train_run(run, device=device)
        after_each()


def train_run(run: Run, *, device: str | None = None) -> None:
    """Train a run that is not done, and draw its curves; see `train_or_resume`."""

    def make_task(config: Any) -> Task:
        task = build_task(config)
        # Written at training time because the report may be made later, on another machine and from
        # another commit.
        prepare_output(run.folder)
        machine = describe_machine(pick_device(device))
        write_file(run.folder / _ORIGIN, f"{machine}, commit {current_commit()}\n")
        return task

    train_or_resume(run, make_task, device=device)
    plot_training_curves(run.folder)


def count_parameters(config: ClassificationConfig, *, num_classes: int) -> int:
    """Return the number of parameters of a classifier, without allocating them."""
    with torch.device("meta"):
        classifier = build_classifier(config, num_classes=num_classes)
    return sum(parameter.numel() for parameter in classifier.parameters())


def origin_of(run: Run) -> str:
    """Return machine, torch version and commit of a training; "unknown" without its file."""
    file = run.folder / _ORIGIN
    return read_text(file).strip() if exists(file) else "unknown"


def records_of(run: Run) -> list[dict[str, Any]]:
    """Return the lines of a run's log.

    Raises:
        UserError: metrics.jsonl is missing or damaged.
    """
    path = run.folder / LOG_FILE
    records, num_damaged = read_metrics(path)
    if num_damaged:
        raise UserError(
            f"{path}: expected a JSON object in each line, got {num_damaged} damaged lines"
        )
    return records


def curve_of(run: Run, kind: str, key: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of a key in the log; lines without a value are skipped.

    Args:
        run: a finished run.
        kind: of the lines: train or eval.
        key: name of the number.

    Raises:
        UserError: no line has a value, or the log is missing or damaged.
    """
    lines = [record for record in records_of(run) if record["kind"] == kind]
    values = [(record["step"], record.get(key)) for record in lines]
    curve = [(step, value) for step, value in values if value is not None]
    if not curve:
        raise UserError(f"{run.folder / LOG_FILE}: expected lines with {key}, got none")
    return curve


def training_seconds(run: Run) -> float:
    """Return the time of all steps up to the last log line, without evaluations and checkpoints.

    Each line gives the images per second since the line before it, so its share of the time is the
    number of images in between divided by that speed.
    """
    seconds, before = 0.0, 0
    for record in records_of(run):
        if record["kind"] == "train":
            steps = record["step"] - before
            seconds += steps * run.config.loop.batch_size / record["images_per_second"]
            before = record["step"]
    return seconds


def origins_table(runs: Sequence[Run]) -> str:
    """Return Markdown with the training time and the origin of each run, or "not run"."""
    rows = []
    for run in runs:
        done = run_status(run) == "done"
        cells = (f"{training_seconds(run):.1f}", origin_of(run)) if done else ("not run", "-")
        rows.append((run.name, *cells))
    return markdown_table(("run", "seconds of training", "machine, torch and commit"), rows)
