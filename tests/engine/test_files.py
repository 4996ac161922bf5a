"""Atomic writing of files."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from engine.errors import UserError
from engine.files import write_atomically


@pytest.mark.parametrize("many", [False, True], ids=["one writer", "many writers"])
def test_file_appears_only_when_complete(tmp_path: Path, many: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen = []

    def write(file: BinaryIO) -> None:
        seen.append(path.read_bytes())
        file.write(b"new")

    write_atomically(path, write, many_writers=many)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_concurrent_writers_use_separate_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def writer(content: bytes, during: Callable[[], None]) -> Callable[[BinaryIO], None]:
        def write(file: BinaryIO) -> None:
            file.write(content[:1])
            during()
            file.write(content[1:])

        return write

    def second() -> None:
        write_atomically(path, writer(b"second", lambda: None), many_writers=True)
        assert path.read_bytes() == b"second"

    write_atomically(path, writer(b"first", second), many_writers=True)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(_: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="file: cannot be written: No space left on device"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
