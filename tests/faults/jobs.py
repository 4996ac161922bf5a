"""What is hurt: twelve steps of the toy task, or of the tiny detector by its own command."""

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
    """A run's settings.

    loop: changes to `LOOP`.
    detector: the tiny detector instead of the toy.
    workers: reading processes.
    plateau: evaluations without a better score after which the rate drops; 0 is never.
    salt: another value gives other scores, so that another step is the best.
    """

    loop: dict[str, int]
    detector: bool = False
    workers: int = 0
    plateau: int = 0
    salt: int = 0


CASES = {
    # saved and evaluated after the same steps; the best is the second of four, and the rate drops
    "equal": Case({"checkpoint_every": 3, "eval_every": 3, "patience": 9}, plateau=1, salt=1),
    # after different steps; stopped early, at 9 of 12, for the first evaluation was the best
    "apart": Case({"checkpoint_every": 2, "eval_every": 3, "patience": 2}, salt=6),
    # evaluated at the end too, because the last step is none of those; the best is the one before
    "late": Case({"checkpoint_every": 3, "eval_every": 5, "patience": 2}, salt=5),
    # the last step's evaluation is the best, so that all that ends a run happens there
    "last": Case({"checkpoint_every": 3, "eval_every": 2, "patience": 3}, salt=3),
    "readers": Case({"checkpoint_every": 3, "eval_every": 2, "patience": 3}, workers=2, salt=3),
    "detector": Case({"checkpoint_every": 4, "eval_every": 3, "patience": 2}, detector=True),
    "detector_readers": Case(
        {"checkpoint_every": 4, "eval_every": 4, "patience": 9}, detector=True, workers=1
    ),
}


class Rows(ToyData):
    """Rows that tell when one is read."""

    def __init__(self, count: int, loaded: Callable[[], None]) -> None:
        super().__init__(count)
        self.loaded = loaded

    def load(self, index: int, seed: int, batch_shape: None = None) -> tuple[int, Tensor]:
        """Read a row."""
        self.loaded()
        return super().load(index, seed)


@dataclass
class Scores(ToyEvaluator):
    """Scores that jump up and down with the weights, and two files."""

    salt: int
    rows: list[tuple[int, float]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def compute(self, states: Sequence[list[tuple[int, float]]]) -> dict[str, float]:
        """Score all rows; keep them."""
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

    def __init__(self, salt: int, loaded: Callable[[str], None]) -> None:
        super().__init__(Rows(24, lambda: loaded("train")))
        self.salt, self.validation = salt, Rows(9, lambda: loaded("val"))

    def val_data(self) -> ToyData:
        """Return fewer rows."""
        return self.validation

    def evaluator(self, *, final: bool = True) -> ToyEvaluator:
        """Return a fresh one."""
        return Scores(self.salt)


def run(
    case: Case, output: Path, *, resume: bool, history: bool, loaded: Callable[[str], None]
) -> None:
    """Run a training as its command does, and leave by SystemExit.

    Args:
        case: its settings.
        output: the run folder.
        resume: as the command's flag.
        history: write a checkpoint after every step, keep all of them, and go to the last step.
        loaded: told `train` or `val` for each row that the toy reads.
    """
    torch.set_num_threads(1)
    loop: dict[str, Any] = LOOP | case.loop
    if history:
        loop |= {"checkpoint_every": 1, "keep_checkpoints": loop["max_steps"], "patience": 99}
    if case.detector:
        words = [f"loop.{key}={value}" for key, value in (loop | {"batch_size": 2}).items()]
        words += [f"loader.workers={case.workers}", "--output", str(output), "--device", "cpu"]
        os.environ["MPLBACKEND"] = "agg"
        sys.argv = ["train_det", "tiny.yaml", *words, *(["--resume"] if resume else [])]
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
        task = JumpyTask(case.salt, loaded)
        fit(task, config, output=output, resume=resume, replace=True, device="cpu")

    run_command(main)
