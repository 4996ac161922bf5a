"""Looking at paths and reading files: each answer that the system refuses is one line.

pathlib's own `exists`, `is_file`, `is_dir`, `glob` and `read_bytes` raise what users see as a
traceback where a folder has no permission, a name is over 255 bytes, or holds the character NUL;
opening a FIFO waits for ever. All code looks at paths through this module.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from engine.errors import UserError

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # Windows has one
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def status_of(path: Path | str) -> os.stat_result | None:
    """Return what the system says of a path, links followed; None: nothing is there.

    Raises:
        UserError: the system gives no answer, as without permission for a folder above.
    """
    with _explained(path):
        try:
            return os.stat(path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None


def exists(path: Path | str) -> bool:
    """Return whether there is a file or folder; UserError as for `status_of`."""
    return status_of(path) is not None


def is_file(path: Path | str) -> bool:
    """Return whether there is a regular file; UserError as for `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: Path | str) -> bool:
    """Return whether there is a folder; UserError as for `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def require_folder(path: Path | str, what: str) -> Path:
    """Return the path of a folder.

    Raises:
        UserError: there is none; the message says `what` was expected, such as "a run folder".
    """
    if not is_folder(path):
        got = "a file" if exists(path) else "no such folder"
        raise UserError(f"{path}: expected {what}, got {got}")
    return Path(path)


def names_in(folder: Path | str, pattern: str = "*") -> list[str]:
    """Return the names in a folder that match a shell pattern, sorted; [] without the folder.

    Raises:
        UserError: it is no folder, or cannot be read.
    """
    with _explained(folder):
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except FileNotFoundError:
            return []
    return sorted(name for name in names if fnmatchcase(name, pattern))


def files_in(folder: Path | str) -> set[str]:
    """Return the names of the regular files in a folder, links followed; none without the folder.

    The listing says what each is: of a hundred thousand images none is asked for by itself.

    Raises:
        UserError: the folder cannot be read.
    """
    found = set()
    with _explained(folder):
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        with entries:
            for entry in entries:
                with suppress(OSError):  # links that lead in a circle
                    if entry.is_file():
                        found.add(entry.name)
    return found


def resolved(path: Path | str) -> Path:
    """Return the absolute path without links; what is not there may be named too.

    Raises:
        UserError: as for `status_of`, or links that lead in a circle.
    """
    with _explained(path):
        try:
            return Path(path).resolve()
        except RuntimeError as error:  # Python 3.12 and before: a circle of links
            raise UserError(f"{path}: links that lead in a circle") from error


@contextmanager
def open_file(path: Path | str) -> Iterator[BinaryIO]:
    """Open a regular file to read its bytes; a FIFO or a device is refused and never waited for.

    Raises:
        UserError: there is no such file, it is of another kind, or it cannot be read.
    """
    with _explained(path), open(os.open(path, _READ), "rb") as file:  # noqa: PTH123
        kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
        if kind != stat.S_IFREG:
            raise UserError(f"{path}: expected a file, got {_KINDS.get(kind, 'something else')}")
        yield file


def read_bytes(path: Path | str) -> bytes:
    """Return a file's bytes; UserError as for `open_file`."""
    with open_file(path) as file:
        return file.read()


def read_text(path: Path | str) -> str:
    """Return a UTF-8 file's text, without a byte order mark.

    Raises:
        UserError: as for `open_file`, or it is no UTF-8 text.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text: {error}") from error


@contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """Turn what the system answers into one line that names the path."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: expected a file, got a folder") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except ValueError as error:  # of the character NUL, or half of a character
        raise UserError(f"{str(path)!r}: expected a path, got one that no file can have") from error
