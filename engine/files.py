"""Reading text files, and writing files in one piece: a kill leaves the old one or the new one."""

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
    """Let `write` fill a file beside `path`, flush it to the disk and rename it.

    Args:
        path: where it goes.
        write: writes the content.
        many_writers: processes may do so at once, each in a file of its own, and the last one's is
            left. Without it a file that a kill left half-written is written over the next time.

    Raises:
        UserError: the disk refuses; what was at `path` is still there.
    """
    own = f".{secrets.token_hex(4)}" if many_writers else ""
    partial = path.with_name(f"{path.name}{own}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power cut may undo the rename
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink()
        # torch's writer hides the disk's answer behind a RuntimeError of its own
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(f"{path}: cannot be written: {reason.strerror}") from error


def write_file(path: Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8; see `write_atomically`."""
    data = content.encode() if isinstance(content, str) else content
    write_atomically(path, lambda file: file.write(data))


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise UserError where there is a file at `path`, unless it may be replaced."""
    if exists(path) and not force:
        raise UserError(f"{path}: expected no such file yet, got one; --force replaces it")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without the space around them, blank ones left out.

    Raises:
        UserError: it is missing, cannot be read, is no UTF-8 text, or holds no line.
    """
    text = read_text(path)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: expected at least one line, got none")
    return lines
