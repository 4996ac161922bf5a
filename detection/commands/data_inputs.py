"""Options that data commands share."""

import argparse
from typing import TYPE_CHECKING

from engine.errors import UserError

if TYPE_CHECKING:
    from engine.cli import CommandParser


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
