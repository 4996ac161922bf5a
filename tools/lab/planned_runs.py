"""Runs that belong together: each is trained, gone on with where it stopped, or left as done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch

from engine.checkpoint import prepare_output
from engine.config import differences, load_config
from engine.errors import InterruptedRunError, UserError
from engine.paths import exists, names_in
from engine.schema import RunConfig
from engine.task import Task
from engine.trainer import fit

C = TypeVar("C", bound=RunConfig)
Stage = Literal["done", "interrupted", "not run"]


@dataclass(frozen=True)
class PlannedRun(Generic[C]):
    """A config, and the folder that its run has or will have."""

    config: C
    folder: Path

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name


def stage_of(run: PlannedRun[C]) -> Stage:
    """Say how far a run is: done, interrupted with a checkpoint to go on from, or not run.

    Raises:
        UserError: the folder holds a run of another config.
    """
    saved = run.folder / "config.yaml"
    if not exists(saved):
        return "not run"
    schemas = {str(run.config.model_dump()["task"]): type(run.config)}
    changed = differences(load_config(saved, schemas=schemas), run.config)
    if changed:
        raise UserError(
            f"{run.folder}: holds a run of another config ({'; '.join(changed)}); "
            "remove it, or choose another --output"
        )
    # The weights are written last; metrics.json at every evaluation.
    if all(exists(run.folder / name) for name in ("metrics.json", "model.safetensors")):
        return "done"
    return "interrupted" if names_in(run.folder / "checkpoints", "step_*.pt") else "not run"


def train_planned(
    run: PlannedRun[C], make_task: Callable[[C], Task], *, device: str | None = None
) -> None:
    """Train a run that is not done, from its newest checkpoint when it has one.

    Args:
        run: what to train.
        make_task: makes the task of a config.
        device: as `--device`; None picks a GPU when there is one.

    Raises:
        UserError: bad data, or the folder holds a run of another config.
        DivergedError: too many non-finite steps in a row.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    resume = stage_of(run) == "interrupted"
    if run.config.loop.compile:
        # torch.compile stops compiling one function after some ten networks in a process.
        torch.compiler.reset()
    task = make_task(run.config)
    prepare_output(run.folder)
    if not resume:  # lines of an earlier start that ended before its first checkpoint
        (run.folder / "metrics.jsonl").unlink(missing_ok=True)
    try:
        fit(task, run.config, output=run.folder, resume=resume, device=device)
    except InterruptedRunError as error:
        raise InterruptedRunError(
            f"{run.name} interrupted; the same command goes on from its newest checkpoint"
        ) from error
