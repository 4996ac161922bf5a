"""Atomic writing of files, and reading of text files.

A kill during a write leaves either the old file or the new one, never a part of it.
"""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from engine.errors import UserError
from engine.paths import exists, read_text


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, many_writers: bool = False
) -> None:
    """Write a temporary file next to `path`, flush it to the disk and rename it to `path`.

    Args:
        path: the file to write; replaced if it exists.
        write: called with the open temporary file; writes the content.
        many_writers: several processes may write `path` at the same time. Each gets its own
            temporary file, and the last rename wins. Otherwise the temporary name is fixed, so a
            partial file left by a kill is overwritten by the next write.

    Raises:
        UserError: the file cannot be written; the file that was at `path` is unchanged.
    """
    suffix = f".{secrets.token_hex(4)}" if many_writers else ""
    partial = path.with_name(f"{path.name}{suffix}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # otherwise a power failure may undo the rename
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink()
        # torch's writer wraps the system's OSError in a RuntimeError
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(f"{path}: cannot be written: {reason.strerror}") from error


def write_file(path: Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8; see `write_atomically`."""
    data = content.encode() if isinstance(content, str) else content
    write_atomically(path, lambda file: file.write(data))


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise UserError if `path` exists, unless `force` allows replacing it."""
    if exists(path) and not force:
        raise UserError(f"{path}: expected no such file yet, got one; --force replaces it")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped of white space; blank lines are dropped.

    Raises:
        UserError: the file is missing, cannot be read, is not UTF-8 text, or has no lines.
    """
    text = read_text(path)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: expected at least one line, got none")
    return lines
