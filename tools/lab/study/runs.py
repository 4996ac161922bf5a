"""Planning, training and measuring the runs of the study.

Errors are fractions in [0, 1] here. The training error is measured on the minibatches of the
training loop (augmented images, batch norm with batch statistics), as in the paper's curves.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backbones.classification.config import SCHEMAS, ClassificationConfig
from backbones.classification.task import ClassificationTask
from backbones.plots import plot_training_curves
from engine.checkpoint import prepare_output
from engine.config import load_config
from engine.distributed import pick_device
from engine.errors import UserError
from engine.files import write_file
from engine.log import METRICS_FILE, read_metrics
from engine.paths import exists, read_text
from engine.provenance import current_commit, describe_machine
from tools.lab.planned_runs import PlannedRun, train_or_resume
from tools.lab.study.config import ScaleConfig

TAIL_FRACTION = 0.1
"""Fraction of the log lines, at the end of a run, that the training error is averaged over."""


@dataclass(frozen=True)
class Run(PlannedRun[ClassificationConfig]):
    """A training run of the study: one network with one seed."""

    network: str
    seed: int


@dataclass(frozen=True)
class Measurement:
    """Errors and training time of a finished run.

    train_error: mean over the last tenth of the log lines. test_error: top-1 error of the final
    evaluation. seconds: training time without evaluations and checkpoints. origin: machine, torch
    version and commit. train_curve, test_curve: (step, error) pairs.
    """

    train_error: float
    test_error: float
    seconds: float
    origin: str
    train_curve: list[tuple[int, float]]
    test_curve: list[tuple[int, float]]


def plan_runs(
    scale: ScaleConfig,
    *,
    configs: Path,
    output: Path,
    seeds: Sequence[int] | None = None,
    data: str | None = None,
) -> list[Run]:
    """Return the runs of a scale, ordered by network, then by seed.

    Args:
        scale: networks, overrides and seeds.
        configs: folder that the paths of `scale.networks` are relative to.
        output: parent of the run folders, `<network>-seed<k>`.
        seeds: replaces the seeds of the scale.
        data: replaces `data.root` of the configs.

    Raises:
        UserError: a config file is missing or invalid, or its `model.backbone.kind` is not
                the network that the scale names.
    """
    runs = []
    # Quoted as JSON, which is also YAML: a path may hold characters special in YAML.
    root = [] if data is None else [f"data.root={json.dumps(data, ensure_ascii=False)}"]
    for network, file in scale.networks.items():
        for seed in dict.fromkeys(scale.seeds if seeds is None else seeds):
            overrides = [*scale.overrides, f"seed={seed}", *root]
            config = load_config(configs / file, overrides, schemas=SCHEMAS)
            assert isinstance(config, ClassificationConfig)
            kind = config.model.backbone.kind
            if kind != network:
                raise UserError(
                    f"{configs / file}: model.backbone.kind: expected {network}, got {kind}"
                )
            runs.append(Run(config, output / f"{network}-seed{seed}", network, seed))
    return runs


def train_run(run: Run, *, device: str | None = None) -> None:
    """Train a run that is not done, and draw its curves; see `train_or_resume`."""

    def make_task(config: ClassificationConfig) -> ClassificationTask:
        task = ClassificationTask.for_training(config)
        prepare_output(run.folder)
        _write_origin(run.folder, pick_device(device))
        return task

    train_or_resume(run, make_task, device=device)
    plot_training_curves(run.folder)


def measure(run: Run) -> Measurement:
    """Read the errors, curves and times that a finished run has logged.

    Raises:
        UserError: its metrics.jsonl is missing or damaged, or holds no errors.
    """
    path = run.folder / METRICS_FILE
    records, num_damaged = read_metrics(path)
    if num_damaged:
        raise UserError(
            f"{path}: expected a JSON object in each line, got {num_damaged} damaged lines"
        )
    trained = [record for record in records if record["kind"] == "train"]
    train_curve = _curve(path, trained, "train_error")
    test_curve = _curve(path, [each for each in records if each["kind"] == "eval"], "top1_error")
    # at least one line
    count = math.ceil(len(train_curve) * TAIL_FRACTION)
    origin = run.folder / "origin.txt"
    return Measurement(
        train_error=statistics.fmean(error for _, error in train_curve[-count:]),
        test_error=test_curve[-1][1],
        seconds=_seconds(trained, batch_size=run.config.loop.batch_size),
        origin=read_text(origin).strip() if exists(origin) else "unknown",
        train_curve=train_curve,
        test_curve=test_curve,
    )


def _curve(path: Path, records: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of a key; lines without a value are skipped.

    Raises:
        UserError: no line has a value.
    """
    values = [(record["step"], record.get(key)) for record in records]
    curve = [(step, value) for step, value in values if value is not None]
    if not curve:
        raise UserError(f"{path}: expected lines with {key}, got none")
    return curve


def _seconds(records: Sequence[dict[str, Any]], *, batch_size: int) -> float:
    """Return the time of all steps up to the last log line.

    Each line gives the images per second since the line before it, so its share of the time is the
    number of images in between divided by that speed.
    """
    seconds, before = 0.0, 0
    for record in records:
        seconds += (record["step"] - before) * batch_size / record["images_per_second"]
        before = record["step"]
    return seconds


def _write_origin(folder: Path, device: torch.device) -> None:
    """Write origin.txt: machine, torch version and commit of the training.

    It is written at training time because the report may be made later, on another machine and from
    another commit.
    """
    text = f"{describe_machine(device)}, commit {current_commit()}\n"
    write_file(folder / "origin.txt", text)
