"""The runs of the study: which there are, how far each is, training them, and what they measured.

Errors are fractions in [0, 1] here. The training error is that of the training loop's own
minibatches (augmented pictures, batch norm on batch statistics), as the paper's curves show it.
"""

import json
import math
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from backbones.classification.config import SCHEMAS, ClassificationConfig
from backbones.classification.study_config import ScaleConfig
from backbones.classification.task import ClassificationTask
from backbones.curves import write_curves
from engine.checkpoint import prepare_output
from engine.config import differences, load_config
from engine.distributed import pick_device
from engine.errors import InterruptedRunError, UserError
from engine.files import write_file
from engine.trainer import fit

Stage = Literal["done", "interrupted", "not run"]
TAIL_FRACTION = 0.1
"""Share of a run's log lines, the last ones, over which its training error is averaged."""


@dataclass(frozen=True)
class Run:
    """One training of the study."""

    network: str
    seed: int
    config: ClassificationConfig
    folder: Path

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name


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
            runs.append(Run(network, seed, config, output / f"{network}-seed{seed}"))
    return runs


def stage_of(run: Run) -> Stage:
    """Say how far a run is: done, interrupted with a checkpoint to go on from, or not run.

    Raises:
        UserError: the folder holds a run of another config.
    """
    saved = run.folder / "config.yaml"
    if not saved.exists():
        return "not run"
    changed = differences(load_config(saved, schemas=SCHEMAS), run.config)
    if changed:
        raise UserError(
            f"{run.folder}: holds a run of another config ({'; '.join(changed)}); "
            "remove it, or choose another --output"
        )
    # The weights are written last; metrics.json at every evaluation.
    if all((run.folder / name).exists() for name in ("metrics.json", "model.safetensors")):
        return "done"
    return "interrupted" if any(run.folder.glob("checkpoints/step_*.pt")) else "not run"


def train_run(run: Run, *, device: str | None = None) -> None:
    """Train a run that is not done, from its newest checkpoint when it has one.

    Args:
        run: what to train.
        device: as `--device`; None picks a GPU when there is one.

    Raises:
        UserError: the pictures are missing, or the folder holds a run of another config.
        DivergedError: too many non-finite steps in a row.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    resume = stage_of(run) == "interrupted"
    if run.config.loop.compile:
        # torch.compile stops compiling one function after some ten networks in a process.
        torch.compiler.reset()
    task = ClassificationTask.for_training(run.config)
    prepare_output(run.folder)
    if not resume:  # lines of an earlier start that ended before its first checkpoint
        (run.folder / "metrics.jsonl").unlink(missing_ok=True)
    _write_origin(run.folder, pick_device(device))
    try:
        fit(task, run.config, output=run.folder, resume=resume, device=device)
    except InterruptedRunError as error:
        raise InterruptedRunError(
            f"{run.name} interrupted; the same command goes on from its newest checkpoint"
        ) from error
    write_curves(run.folder)


def measure(run: Run) -> Measurement:
    """Read what a finished run has logged.

    Raises:
        UserError: its metrics.jsonl is missing or damaged, or lacks the errors.
    """
    path = run.folder / "metrics.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: expected a line of JSON for each logged step, {error}") from error
    trained = [record for record in records if record["kind"] == "train"]
    train_curve = _curve(path, trained, "train_error")
    test_curve = _curve(path, [each for each in records if each["kind"] == "eval"], "top1_error")
    count = math.ceil(len(train_curve) * TAIL_FRACTION)
    origin = run.folder / "origin.txt"
    return Measurement(
        train_error=statistics.fmean(error for _, error in train_curve[-count:]),
        test_error=test_curve[-1][1],
        seconds=_seconds(trained, batch_size=run.config.loop.batch_size),
        origin=origin.read_text(encoding="utf-8").strip() if origin.exists() else "unknown",
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
