"""Training jobs for fault injection: 12 steps of the toy task, or of the tiny detector."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detection.commands import train as train_det
from engine.cli import run_command
from engine.files import write_file
from engine.schema import LoaderConfig, LoopConfig, OptimConfig, RunConfig, ScheduleConfig
from engine.trainer import fit
from tests.engine.toy import ToyData, ToyEvaluator, ToyTask

LOOP = {"max_steps": 12, "batch_size": 4, "log_every": 1, "ema_decay": 0.9, "drawn_images": 1}
LOOP |= {"collective_timeout_s": 60}


@dataclass(frozen=True)
class Case:
    """Settings of a run.

    loop: changes to `LOOP`.
    detector: the tiny detector instead of the toy.
    workers: worker processes.
    plateau: evaluations without a better score after which the rate drops; 0 never drops.
    salt: changes the scores, so that another step is the best.
    """

    loop: dict[str, int]
    detector: bool = False
    workers: int = 0
    plateau: int = 0
    salt: int = 0


CASES = {
    # saved and evaluated at the same steps; the second of four evaluations is the best; a rate drop
    "equal": Case({"checkpoint_every": 3, "eval_every": 3, "patience": 9}, plateau=1, salt=1),
    # at different steps; the first evaluation is the best, so the run stops early, at 9 of 12
    "apart": Case({"checkpoint_every": 2, "eval_every": 3, "patience": 2}, salt=6),
    # an extra evaluation at the end, off the interval; the one before it is the best
    "late": Case({"checkpoint_every": 3, "eval_every": 5, "patience": 2}, salt=5),
    # the last step's evaluation is the best, so best.pt and the export happen at the same step
    "last": Case({"checkpoint_every": 3, "eval_every": 2, "patience": 3}, salt=3),
    "workers": Case({"checkpoint_every": 3, "eval_every": 2, "patience": 3}, workers=2, salt=3),
    "detector": Case({"checkpoint_every": 4, "eval_every": 3, "patience": 2}, detector=True),
    "detector_workers": Case(
        {"checkpoint_every": 4, "eval_every": 4, "patience": 9}, detector=True, workers=1
    ),
}


class Rows(ToyData):
    """Rows that call a function when one is read."""

    def __init__(self, count: int, on_load: Callable[[], None]) -> None:
        super().__init__(count)
        self.on_load = on_load

    def load(self, index: int, seed: int, batch_shape: None = None) -> tuple[int, Tensor]:
        """Read a row."""
        self.on_load()
        return super().load(index, seed)


@dataclass
class Scores(ToyEvaluator):
    """Evaluator with scores that vary wildly with the weights; it writes two files."""

    salt: int
    rows: list[tuple[int, float]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def compute(self, states: Sequence[list[tuple[int, float]]]) -> dict[str, float]:
        """Score all rows; keep them for `write`."""
        error = -super().compute(states)["score"]
        self.rows = sorted(row for state in states for row in state)
        self.metrics = {"score": (1000 + self.salt) * error % 1, "error": error}
        return self.metrics

    def write(self, directory: Path) -> None:
        """Write metrics.json and detections.json."""
        write_file(directory / "metrics.json", json.dumps(self.metrics))
        write_file(directory / "detections.json", json.dumps(self.rows))


class JumpyTask(ToyTask):
    """The toy task with `Rows` and `Scores`."""

    def __init__(self, salt: int, on_load: Callable[[str], None]) -> None:
        super().__init__(Rows(24, lambda: on_load("train")))
        self.salt, self.validation = salt, Rows(9, lambda: on_load("val"))

    def val_data(self) -> ToyData:
        """Return fewer rows."""
        return self.validation

    def evaluator(self, *, final: bool = True) -> ToyEvaluator:
        """Return a new evaluator."""
        return Scores(self.salt)


def run(
    case: Case, output: Path, *, resume: bool, history: bool, on_load: Callable[[str], None]
) -> None:
    """Run a training as its command does; ends with SystemExit.

    Args:
        case: settings of the run.
        output: the run folder.
        resume: as the command's flag.
        history: write and keep a checkpoint of every step, and do not stop early.
        on_load: called with `train` or `val` for each row that the toy reads.
    """
    torch.set_num_threads(1)
    loop: dict[str, Any] = LOOP | case.loop
    if history:
        loop |= {"checkpoint_every": 1, "keep_checkpoints": loop["max_steps"], "patience": 99}
    if case.detector:
        arguments = [f"loop.{key}={value}" for key, value in (loop | {"batch_size": 2}).items()]
        arguments += [f"loader.workers={case.workers}", "--output", str(output), "--device", "cpu"]
        os.environ["MPLBACKEND"] = "agg"
        sys.argv = ["train_det", "tiny.yaml", *arguments, *(["--resume"] if resume else [])]
        run_command(train_det.main)
    config = RunConfig(
        optim=OptimConfig(lr=0.05),
        schedule=ScheduleConfig(
            kind="plateau" if case.plateau else "steps", plateau_evaluations=case.plateau or 1
        ),
        loader=LoaderConfig(workers=case.workers),
        loop=LoopConfig(**loop),
    )

    def main() -> None:
        task = JumpyTask(case.salt, on_load)
        fit(task, config, output=output, resume=resume, replace=True, device="cpu")

    run_command(main)
