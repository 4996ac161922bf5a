"""Checking paths and reading files, with a one-line UserError for every system error.

pathlib's `exists`, `is_file`, `is_dir`, `glob` and `read_bytes` end in a traceback if a folder has
no read permission, or if a name has over 255 bytes or a NUL character; opening a FIFO blocks
forever. So all code checks paths and opens files through this module.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from engine.errors import UserError

# O_NONBLOCK (not on Windows): opening a FIFO without a writer returns at once
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NOT_UTF8 = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"PK\x03\x04": "a ZIP archive; unpack it first",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}
"""By the first bytes, what a file may be that is not UTF-8 text."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def status_of(path: Path | str) -> os.stat_result | None:
    """Return the `os.stat` result of a path (links are followed); None if nothing is there.

    Raises:
        UserError: the path cannot be checked, for example without permission for a parent folder.
    """
    with _as_user_error(path):
        try:
            return os.stat(path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None


def exists(path: Path | str) -> bool:
    """Return whether a file or folder exists at `path`; UserError as for `status_of`."""
    return status_of(path) is not None


def is_file(path: Path | str) -> bool:
    """Return whether `path` is a regular file; UserError as for `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: Path | str) -> bool:
    """Return whether `path` is a folder; UserError as for `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_link(path: Path | str) -> bool:
    """Return whether `path` is a symbolic link; UserError as for `status_of`."""
    with _as_user_error(path):
        return Path(path).is_symlink()


def require_folder(path: Path | str, what: str) -> Path:
    """Return `path` as a Path if it is a folder.

    Args:
        path: the folder.
        what: what was expected, for the message, such as "a run folder".

    Raises:
        UserError: it is not a folder.
    """
    if not is_folder(path):
        got = "a file" if exists(path) else "no such folder"
        raise UserError(f"{path}: expected {what}, got {got}")
    return Path(path)


def make_folder(folder: Path | str) -> None:
    """Create a folder and its parents; it may exist already.

    Raises:
        UserError: it cannot be created.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created: {error.strerror}") from error
    except ValueError as error:  # a NUL character
        raise UserError(f"{str(folder)!r}: expected a path, got one that cannot exist") from error


def names_in(folder: Path | str, pattern: str = "*") -> list[str]:
    """Return the sorted names in a folder that match a shell pattern; [] if it does not exist.

    Raises:
        UserError: `folder` is not a folder, or cannot be read.
    """
    with _as_user_error(folder):
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except FileNotFoundError:
            return []
    return sorted(name for name in names if fnmatchcase(name, pattern))


def files_in(folder: Path | str) -> set[str]:
    """Return the names of the regular files in a folder (links are followed).

    The set is empty if the folder does not exist. The directory listing gives the type of each
    entry, so a folder of a hundred thousand images needs no `stat` call per file.

    Raises:
        UserError: the folder cannot be read.
    """
    found = set()
    with _as_user_error(folder):
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        with entries:
            for entry in entries:
                with suppress(OSError):  # a cycle of links
                    if entry.is_file():
                        found.add(entry.name)
    return found


def resolved(path: Path | str) -> Path:
    """Return the absolute path with all links resolved; the path need not exist.

    Raises:
        UserError: as for `status_of`, or the links form a cycle.
    """
    with _as_user_error(path):
        try:
            return Path(path).resolve()
        except RuntimeError as error:  # Python 3.12 and before: a cycle of links
            raise UserError(f"{path}: the links form a cycle") from error


@contextmanager
def open_file(path: Path | str) -> Iterator[BinaryIO]:
    """Open a regular file for reading bytes. FIFOs and devices are rejected without waiting.

    Raises:
        UserError: the file does not exist, is not a regular file, or cannot be read.
    """
    with _as_user_error(path), open(os.open(path, _READ), "rb") as file:  # noqa: PTH123
        kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
        if kind != stat.S_IFREG:
            raise UserError(f"{path}: expected a file, got {_KINDS.get(kind, 'something else')}")
        yield file


def read_bytes(path: Path | str) -> bytes:
    """Return the bytes of a file; UserError as for `open_file`."""
    with open_file(path) as file:
        return file.read()


def read_text(path: Path | str) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: as for `open_file`, or the file is not UTF-8 text.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, got {describe_bytes(data)}") from error


def describe_bytes(data: bytes) -> str:
    """Return what bytes that are not UTF-8 text are, for a message, and what to do."""
    for start, what in _NOT_UTF8.items():
        if data.startswith(start):
            return what
    return "another encoding or a binary file; if it is text, save it as UTF-8"


@contextmanager
def _as_user_error(path: Path | str) -> Iterator[None]:
    """Convert system errors into a one-line UserError that names the path."""
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
    except ValueError as error:  # a NUL character, or half of a surrogate pair
        raise UserError(f"{str(path)!r}: expected a path, got one that cannot exist") from error
