"""Run folder: a lock for one run at a time, and renaming of an earlier run."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.checkpoint import prepare_output, read_safetensors
from engine.errors import UserError
from engine.locks import FolderLock
from engine.paths import exists, is_file, names_in, read_text, status_of

WEIGHTS_FILE = "model.safetensors"
"""File in a run folder with the exported weights of a finished run."""


def contains_run(directory: Path) -> bool:
    """Return whether a run was started in a folder: it has checkpoints or a run's config.yaml."""
    if exists(directory / "checkpoints"):
        return True
    config = directory / "config.yaml"
    try:
        return is_file(config) and "\nloop:\n" in read_text(config)
    except UserError:  # not text: a file of another program
        return False


def _has_results(directory: Path) -> bool:
    """Return whether a run has a logged step, a checkpoint or weights."""
    logged = status_of(directory / "metrics.jsonl")
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
        if exists(directory / "config.yaml"):
            raise UserError(
                f"{directory}: expected an empty folder or a run folder, got one with another "
                "config.yaml"
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


@contextmanager
def locked_run_folder(output: Path, *, move_aside: bool) -> Iterator[list[str]]:
    """Create a run folder and hold its lock while the run lasts.

    Args:
        output: the folder; created if missing.
        move_aside: rename an earlier run in it.

    Yields:
        Lines for the log.

    Raises:
        UserError: another run writes to the folder, or it is not writable.
    """
    prepare_output(output)
    lock = FolderLock(output)
    notes = [] if lock.note is None else [lock.note]
    try:
        aside = move_run_aside(output) if move_aside else None
        if aside is not None:
            notes.append(f"{output}: the earlier run was renamed to {aside}")
            # the lock file moved with the folder; lock the new, empty one
            lock.release(aside)
            prepare_output(output)
            lock = FolderLock(output)
        yield notes
    finally:
        lock.release(output)


def finished_metrics(directory: Path, *, run_step: int) -> dict[str, float] | None:
    """Return the final metrics of a run that finished after `run_step` steps, otherwise None.

    Raises:
        UserError: its files are damaged.
    """
    if not is_file(directory / WEIGHTS_FILE) or not is_file(directory / "metrics.json"):
        return None
    # the files may be of an earlier run with fewer steps
    if read_safetensors(directory / WEIGHTS_FILE)[1].get("run_step") != str(run_step):
        return None
    try:
        found = json.loads(read_text(directory / "metrics.json"))
    except ValueError as error:
        raise UserError(f"{directory / 'metrics.json'}: expected JSON, got: {error}") from error
    numbers = found.items() if isinstance(found, dict) else ()
    values = {name: math.nan if value is None else value for name, value in numbers}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
