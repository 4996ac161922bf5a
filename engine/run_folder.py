"""Run folder: a lock for one run at a time, and renaming of an earlier run."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from engine.checkpoint import prepare_output, read_safetensors
from engine.errors import UserError
from engine.locks import FolderLock
from engine.paths import exists, is_file, is_folder, names_in, read_text, status_of
from engine.run_files import CONFIG_FILE, LOG_FILE, SCORES_FILE, WEIGHTS_FILE


def contains_run(directory: Path) -> bool:
    """Return whether a run was started in a folder: it has checkpoints or a run's config.yaml."""
    if exists(directory / "checkpoints"):
        return True
    config = directory / CONFIG_FILE
    try:
        return is_file(config) and "\nloop:\n" in read_text(config)
    except UserError:  # not text: a file of another program
        return False


def run_folder_of(path: Path) -> Path:
    """Return RUN for RUN, RUN/model.safetensors and RUN/checkpoints/step_N.pt."""
    folder = path if is_folder(path) else path.parent
    return folder.parent if folder.name == "checkpoints" else folder


def _has_results(directory: Path) -> bool:
    """Return whether a run has a logged step, a checkpoint or weights."""
    logged = status_of(directory / LOG_FILE)
    return bool(
        names_in(directory / "checkpoints", "*.pt")
        or exists(directory / WEIGHTS_FILE)
        or (logged is not None and logged.st_size)
    )


def move_run_aside(directory: Path) -> Path | None:
    """Rename a run's folder to the first free name of `directory`.1, .2 ...

    A run that failed before it logged a step is not renamed; the new run overwrites it.

    Returns:
        The new name of the folder; None if nothing was renamed.

    Raises:
        UserError: the folder has a config.yaml that is not a run's, or cannot be renamed.
    """
    if not contains_run(directory):
        if exists(directory / CONFIG_FILE):
            raise UserError(
                f"{directory}: expected an empty folder or a run folder, got one with "
                f"another {CONFIG_FILE}"
            )
        return None
    if not _has_results(directory):
        return None
    number = 1
    while exists(aside := directory.with_name(f"{directory.name}.{number}")):
        number += 1
    try:
        directory.rename(aside)
    except OSError as error:  # for example a mount point
        raise UserError(
            f"{directory}: holds a run that cannot be renamed to {aside.name}: {error.strerror}; "
            "choose another --output"
        ) from error
    return aside


class LockedRunFolder:
    """A run folder that this process has locked, and what happened to it, as lines for the log."""

    def __init__(
        self, output: Path, *, wait_s: float = 0, say: Callable[[str], object] | None = None
    ) -> None:
        """Create the folder `output` if missing and lock it; arguments as of FolderLock.

        Raises:
            UserError: another run writes to the folder, or it is not writable.
        """
        prepare_output(output)
        self._output = output
        self._lock = FolderLock(output, wait_s=wait_s, say=say)
        self.notes = [] if self._lock.note is None else [self._lock.note]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self._lock.release(self._output)

    def move_run_aside(self) -> None:
        """Rename an earlier run in the folder, and lock a new, empty folder; see `move_run_aside`.

        Raises:
            UserError: as `move_run_aside`.
        """
        aside = move_run_aside(self._output)
        if aside is not None:
            self.notes.append(f"{self._output}: the earlier run was renamed to {aside}")
            self._lock.release(aside)  # the lock file moved with the folder
            prepare_output(self._output)
            self._lock = FolderLock(self._output)


def is_start_without_checkpoint(directory: Path, config_text: str) -> bool:
    """Return whether a folder holds only the log of a run that ended before its first checkpoint.

    config_text: content of the run's config.yaml, which must be equal.
    """
    if names_in(directory / "checkpoints", "*.pt") or exists(directory / WEIGHTS_FILE):
        return False
    config = directory / CONFIG_FILE
    try:
        return is_file(config) and read_text(config) == config_text
    except UserError:  # not text: a file of another program
        return False


def finished_metrics(directory: Path, *, run_step: int) -> dict[str, float] | None:
    """Return the final metrics of a run that finished after `run_step` steps, otherwise None.

    Raises:
        UserError: its files are damaged.
    """
    if not is_file(directory / WEIGHTS_FILE) or not is_file(directory / SCORES_FILE):
        return None
    # the files may be of an earlier run with fewer steps
    if read_safetensors(directory / WEIGHTS_FILE)[1].get("run_step") != str(run_step):
        return None
    try:
        found = json.loads(read_text(directory / SCORES_FILE))
    except ValueError as error:
        raise UserError(f"{directory / 'metrics.json'}: expected JSON, got: {error}") from error
    return metric_numbers(found) if isinstance(found, dict) else {}


def metric_numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a metrics.json, which has null for NaN, without its texts."""
    values = {name: math.nan if value is None else value for name, value in found.items()}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
