"""The runs of the study: which there are, how far each is, training them, and what they measured.

Errors are fractions in [0, 1] here. The training error is that of the training loop's own
minibatches (augmented images, batch norm on batch statistics), as the paper's curves show it.
"""

import json
import math
import platform
import statistics
import subprocess
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
from engine.log import METRICS, read_metrics
from engine.paths import exists, read_text
from tools.lab.planned_runs import PlannedRun, train_planned
from tools.lab.study.config import ScaleConfig

TAIL_FRACTION = 0.1
"""Share of a run's log lines, the last ones, over which its training error is averaged."""


@dataclass(frozen=True)
class Run(PlannedRun[ClassificationConfig]):
    """One training of the study."""

    network: str
    seed: int


@dataclass(frozen=True)
class Measurement:
    """What a finished run measured.

    train_error: mean over the last tenth of the log lines. test_error: of the final evaluation.
    seconds: of training, without evaluations and checkpoints. origin: machine, torch and commit.
    train_curve, test_curve: (step, error).
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
    """Return the runs of a scale in their order: by network, then by seed.

    Args:
        scale: networks, overrides and seeds.
        configs: folder that the scale's config files are relative to.
        output: folder that receives a folder for each run, `<network>-seed<k>`.
        seeds: in the place of the scale's.
        data: in the place of the configs' `data.root`.

    Raises:
        UserError: a config file is missing or wrong, or of another network.
    """
    runs = []
    # Quoted as JSON, which is YAML: a path may hold a character that YAML reads otherwise.
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
    """Train a run that is not done, and draw its curves; see `train_planned`."""

    def make_task(config: ClassificationConfig) -> ClassificationTask:
        task = ClassificationTask.for_training(config)
        prepare_output(run.folder)
        _write_origin(run.folder, pick_device(device))
        return task

    train_planned(run, make_task, device=device)
    plot_training_curves(run.folder)


def measure(run: Run) -> Measurement:
    """Read what a finished run has logged.

    Raises:
        UserError: its metrics.jsonl is missing or damaged, or lacks the errors.
    """
    path = run.folder / METRICS
    records, num_damaged = read_metrics(path)
    if num_damaged:
        raise UserError(f"{path}: expected a JSON object in each line, {num_damaged} hold none")
    trained = [record for record in records if record["kind"] == "train"]
    train_curve = _curve(path, trained, "train_error")
    test_curve = _curve(path, [each for each in records if each["kind"] == "eval"], "top1_error")
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
    """Return (step, value) of each line that has the value; an error when none has."""
    values = [(record["step"], record.get(key)) for record in records]
    curve = [(step, value) for step, value in values if value is not None]
    if not curve:
        raise UserError(f"{path}: expected lines with {key}, got none")
    return curve


def _seconds(records: Sequence[dict[str, Any]], *, batch_size: int) -> float:
    """Return the time of all steps up to the last line, from the speed that each line gives."""
    seconds, before = 0.0, 0
    for record in records:
        seconds += (record["step"] - before) * batch_size / record["images_per_second"]
        before = record["step"]
    return seconds


def _write_origin(folder: Path, device: torch.device) -> None:
    """Note where a run is trained: a report may be written elsewhere and from another commit."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} processor, {torch.get_num_threads()} thread(s)"
    text = f"{name}, torch {torch.__version__}, commit {current_commit()}\n"
    write_file(folder / "origin.txt", text)


def current_commit() -> str:
    """Return the commit of the clone that this file lies in, `-dirty` when changed; or unknown."""
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
