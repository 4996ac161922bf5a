"""Training runs with a known config and folder: trained, resumed, or skipped if done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch

from engine.checkpoint import prepare_output
from engine.config import differences, load_config
from engine.errors import InterruptedRunError, UserError
from engine.paths import exists, names_in
from engine.run_files import CONFIG_FILE, LOG_FILE, SCORES_FILE, WEIGHTS_FILE
from engine.schema import RunConfig
from engine.task import Task
from engine.trainer import fit

C = TypeVar("C", bound=RunConfig)
RunStatus = Literal["done", "interrupted", "not run"]
"""`interrupted`: not done, and there is a checkpoint to resume from."""


@dataclass(frozen=True)
class PlannedRun(Generic[C]):
    """A config and its run folder, which need not exist yet."""

    config: C
    folder: Path

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name


def run_status(run: PlannedRun[C]) -> RunStatus:
    """Return how far a run has come, according to the files in its folder.

    Raises:
        UserError: the folder holds a run of another config.
    """
    saved = run.folder / CONFIG_FILE
    if not exists(saved):
        return "not run"
    schemas = {str(run.config.model_dump()["task"]): type(run.config)}
    changed = differences(load_config(saved, schemas=schemas), run.config)
    if changed:
        raise UserError(
            f"{run.folder}: holds a run of another config ({'; '.join(changed)}); "
            "remove it, or choose another --output"
        )
    # metrics.json is written at every evaluation, model.safetensors only at the end.
    if all(exists(run.folder / name) for name in (SCORES_FILE, WEIGHTS_FILE)):
        return "done"
    return "interrupted" if names_in(run.folder / "checkpoints", "step_*.pt") else "not run"


def train_or_resume(
    run: PlannedRun[C], make_task: Callable[[C], Task], *, device: str | None = None
) -> None:
    """Train a run that is not done, from its newest checkpoint if it has one.

    Args:
        run: the run to train.
        make_task: builds the task of a config.
        device: as `--device`; None picks a GPU if there is one.

    Raises:
        UserError: bad data, or the folder holds a run of another config.
        DivergedError: too many non-finite steps in a row.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    resume = run_status(run) == "interrupted"
    if run.config.loop.compile:
        # torch.compile stops compiling a function after about ten networks in one process.
        torch.compiler.reset()
    task = make_task(run.config)
    prepare_output(run.folder)
    if not resume:  # remove the log of an earlier start that wrote no checkpoint
        (run.folder / LOG_FILE).unlink(missing_ok=True)
    try:
        fit(task, run.config, output=run.folder, resume=resume, device=device)
    except InterruptedRunError as error:
        raise InterruptedRunError(
            f"{run.name} was interrupted; run the same command again to resume from its newest "
            "checkpoint"
        ) from error
