"""Inputs that data commands share: large JSON files, and processes that decode images."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError

if TYPE_CHECKING:
    from engine.cli import CommandParser
    from engine.log import RunLog

LARGE_BYTES = 20_000_000
"""A JSON of this size is read in about a second."""


def say_large(log: "RunLog", *files: Path | None) -> None:
    """Say that large files will be read; None and missing files are skipped.

    Raises:
        UserError: a file cannot be checked, for example without permission for its folder.
    """
    from engine.paths import status_of

    for file in files:
        status = None if file is None else status_of(file)
        if status is not None and status.st_size >= LARGE_BYTES:
            log.note(f"reading {file} ({status.st_size / 1e6:.0f} MB)")


def add_workers(parser: "CommandParser") -> None:
    """Add the option `--workers`: processes that decode images."""
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that decode images; 0: none but this one (default: one a core, at most 8)",
    )


def workers_of(arguments: argparse.Namespace) -> int:
    """Return the number of processes that `--workers` asks for; raise UserError if negative."""
    from detection.data.image_content import default_workers

    if arguments.workers is None:
        return default_workers()
    if arguments.workers < 0:
        raise UserError(f"--workers: expected 0 or more, got {arguments.workers}")
    return int(arguments.workers)
