"""The folder of a run: one run at a time, an earlier one moved aside, and the final weights."""

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


def contains_run(directory: Path) -> bool:
    """Return whether a run was started in a folder: its checkpoints tell, or its config."""
    if exists(directory / "checkpoints"):
        return True
    config = directory / "config.yaml"
    try:
        return is_file(config) and "\nloop:\n" in read_text(config)
    except UserError:  # no text: another program's
        return False


def _holds_work(directory: Path) -> bool:
    """Return whether a run got further than its start: a step logged, a checkpoint, weights."""
    logged = status_of(directory / "metrics.jsonl")
    return bool(
        names_in(directory / "checkpoints", "*.pt")
        or exists(directory / WEIGHTS_FILE)
        or (logged is not None and logged.st_size)
    )


def move_run_aside(directory: Path) -> Path | None:
    """Rename a run's folder to the next free of `directory`.1, .2 ...

    A run that failed at its start, before it logged a step, is written over instead.

    Returns:
        Where the run is now; None when nothing was moved.

    Raises:
        UserError: what lies there would be written over, and is no run; or it cannot be renamed.
    """
    if not contains_run(directory):
        if exists(directory / "config.yaml"):
            raise UserError(
                f"{directory}: expected a free folder, got one with another config.yaml"
            )
        return None
    if not _holds_work(directory):
        return None
    number = 1
    while exists(aside := directory.with_name(f"{directory.name}.{number}")):
        number += 1
    try:
        directory.rename(aside)
    except OSError as error:  # such as a mount point
        raise UserError(
            f"{directory}: holds a run that cannot be renamed to {aside.name}: {error.strerror}; "
            "choose another --output"
        ) from error
    return aside


@contextmanager
def locked_run_folder(output: Path, *, move_aside: bool) -> Iterator[list[str]]:
    """Make a folder this run's own, for as long as it runs.

    Args:
        output: the folder; made where it is not there.
        move_aside: rename a run that lies in it.

    Yields:
        Lines for the log.

    Raises:
        UserError: another run writes to it, or it cannot be written to.
    """
    prepare_output(output)
    lock = FolderLock(output)
    notes = [] if lock.note is None else [lock.note]
    try:
        aside = move_run_aside(output) if move_aside else None
        if aside is not None:
            notes.append(f"{output}: the run that lay there is now {aside}")
            lock.release(aside)
            prepare_output(output)
            lock = FolderLock(output)
        yield notes
    finally:
        lock.release(output)


def finished_metrics(directory: Path, *, run_step: int) -> dict[str, float] | None:
    """Return the final metrics of a run that ended after `run_step` steps; None: it did not.

    Raises:
        UserError: its files are damaged.
    """
    if not is_file(directory / WEIGHTS_FILE) or not is_file(directory / "metrics.json"):
        return None
    if read_safetensors(directory / WEIGHTS_FILE)[1].get("run_step") != str(run_step):
        return None
    try:
        found = json.loads(read_text(directory / "metrics.json"))
    except ValueError as error:
        raise UserError(f"{directory / 'metrics.json'}: expected JSON, got: {error}") from error
    numbers = found.items() if isinstance(found, dict) else ()
    values = {name: math.nan if value is None else value for name, value in numbers}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
