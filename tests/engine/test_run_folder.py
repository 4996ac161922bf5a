"""Run folder: its lock, and renaming of an earlier run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.locks import FolderLock
from engine.run_folder import LockedRunFolder, contains_run, move_run_aside
from engine.trainer import fit
from tests.engine.test_trainer import config
from tests.engine.toy import ToyData, ToyTask

HOLDER = """
import sys, time
from pathlib import Path
from engine.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},  # noqa: PTH109
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_folder_in_use_is_rejected_until_its_run_ends_even_by_a_kill(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(UserError) as caught:
        fit(ToyTask(), config(), output=tmp_path)
    assert f"in use by process {holder.pid} on {os.uname().nodename}" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {FolderLock.name}
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=10)
    assert (tmp_path / FolderLock.name).exists()  # the file remains, but locks nobody out
    fit(ToyTask(), config(), output=tmp_path)
    assert not (tmp_path / FolderLock.name).exists()


def test_lock_does_not_follow_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FolderLock.name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"\.lock: cannot be created"):
        FolderLock(tmp_path / "run")
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_earlier_run_is_renamed_with_its_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number in range(3):
        fit(ToyTask(), config(max_steps=1), output=run, replace=True)
        (run / "mark").write_text(str(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    assert [(tmp_path / name / "mark").read_text() for name in ("run.1", "run.2", "run")] == [
        "0",
        "1",
        "2",
    ]
    assert not list(tmp_path.rglob(FolderLock.name))


def test_failed_start_is_overwritten_not_renamed(tmp_path: Path) -> None:
    class Empty(ToyData):
        def load(self, index: int, seed: int, batch_shape: None = None) -> tuple[int, object]:  # type: ignore[override]
            raise UserError("0.jpg: no such file")

    for _ in range(3):
        with pytest.raises(UserError, match="no such file"):
            fit(ToyTask(Empty()), config(), output=tmp_path / "run", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    fit(ToyTask(), config(max_steps=1), output=tmp_path / "run", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_invalid_settings_do_not_rename_an_earlier_run(tmp_path: Path) -> None:
    fit(ToyTask(), config(max_steps=1), output=tmp_path / "run")
    with pytest.raises(UserError, match=r"loop\.batch_size"):
        fit(ToyTask(), config(batch_size=5, accumulate=2), output=tmp_path / "run", replace=True)
    task = ToyTask()
    task.model.requires_grad_(False)
    with pytest.raises(UserError, match="expected trainable parameters"):
        fit(task, config(), output=tmp_path / "run", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_failed_rename_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(self: Path, target: Path) -> Path:
        raise OSError(16, "Device or resource busy")

    fit(ToyTask(), config(max_steps=1), output=tmp_path / "run")
    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(UserError, match=r"cannot be renamed to run\.1: Device or resource busy"):
        move_run_aside(tmp_path / "run")


def test_config_of_another_program_is_not_a_run(tmp_path: Path) -> None:
    assert not contains_run(tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe not text")
    assert not contains_run(tmp_path)
    with (
        pytest.raises(UserError, match="expected an empty folder or a run folder"),
        LockedRunFolder(tmp_path) as folder,
    ):
        folder.move_run_aside()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]
