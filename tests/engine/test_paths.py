"""Path checks: every system error is one line, without a traceback or a wait."""

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import paths
from engine.errors import UserError

LOOKS: dict[str, Callable[[Path], object]] = {
    "exists": paths.exists,
    "is_file": paths.is_file,
    "is_folder": paths.is_folder,
    "names_in": paths.names_in,
    "read_bytes": paths.read_bytes,
    "read_text": paths.read_text,
}
BAD = {
    "too long": "n" * 300,
    "nul": "a\0b",
    "half a character": "a\ud800b",
    "circle": "circle",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "locked").mkdir(mode=0)
    return tmp_path


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_invalid_path_is_one_line(folder: Path, name: str, look: Callable[[Path], object]) -> None:
    with pytest.raises(UserError) as caught:
        look(folder / name)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Run as a user without root's permissions."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_folder_without_permission_is_one_line(
    folder: Path, look: Callable[[Path], object], ordinary_user: None
) -> None:
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        look(folder / "locked" / "folder")


def test_existing_paths(folder: Path) -> None:
    assert paths.exists(folder / "file")
    assert paths.exists(folder / "folder")
    assert not paths.exists(folder / "nothing")
    assert not paths.exists(folder / "file" / "below")
    assert paths.is_file(folder / "file")
    assert not paths.is_file(folder / "folder")
    assert paths.is_folder(folder / "folder")
    assert not paths.is_folder(folder / "file")
    assert paths.names_in(folder, "f*") == ["file", "folder"]
    assert paths.names_in(folder / "nothing") == []
    assert paths.read_text(folder / "file") == "text"
    assert paths.resolved(folder / "nothing" / ".." / "file") == folder.resolve() / "file"


def test_require_folder(folder: Path) -> None:
    assert paths.require_folder(folder / "folder", "a run folder") == folder / "folder"
    with pytest.raises(UserError, match="expected a run folder, got a file"):
        paths.require_folder(folder / "file", "a run folder")
    with pytest.raises(UserError, match="expected a run folder, got no such folder"):
        paths.require_folder(folder / "nothing", "a run folder")


@pytest.mark.parametrize(
    ("name", "got"),
    [("folder", "a folder"), ("fifo", "a FIFO"), ("/dev/zero", "a device")],
    ids=["folder", "fifo", "device"],
)
def test_fifos_and_devices_are_rejected_without_waiting(folder: Path, name: str, got: str) -> None:
    os.mkfifo(folder / "fifo")
    with pytest.raises(UserError, match=f"expected a file, got {got}"):
        paths.read_bytes(folder / name)


def test_text_of_another_encoding_is_one_line(folder: Path) -> None:
    (folder / "gbk").write_bytes("汉字".encode("gbk"))
    with pytest.raises(UserError, match="expected UTF-8 text, got another encoding or a binary"):
        paths.read_text(folder / "gbk")
    for name, data, got in (
        ("utf16", "text".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("packed", gzip.compress(b"text"), "a gzip archive; unpack it first"),
    ):
        (folder / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}: expected UTF-8 text, got {got}$"):
            paths.read_text(folder / name)
    (folder / "marked").write_bytes(b"\xef\xbb\xbftext")
    assert paths.read_text(folder / "marked") == "text"
