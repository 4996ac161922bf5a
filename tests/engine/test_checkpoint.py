"""Checkpoints and safetensors files: round trips, kills, full disks, damaged and foreign files."""

import os
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import (
    CheckpointFolder,
    load_checkpoint,
    prepare_output,
    read_safetensors,
    rng_state,
    save_checkpoint,
    set_rng_state,
    write_safetensors,
)
from engine.errors import UserError

PAYLOAD = {
    "model": {"w": torch.arange(6.0).reshape(2, 3)},
    "step": 7,
    "lr": 0.1,
    "config": '{"seed": 0}',
    "history": [1.0, None, (True, "x")],
}


class ForeignClass:
    """A class that a weights-only load rejects."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_saved_payload_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", PAYLOAD)
    torch.testing.assert_close(load_checkpoint(tmp_path / "a.pt")["model"], PAYLOAD["model"])
    rest = {key: value for key, value in PAYLOAD.items() if key != "model"}
    assert {k: v for k, v in load_checkpoint(tmp_path / "a.pt").items() if k != "model"} == rest
    assert names(tmp_path) == ["a.pt"]


@pytest.fixture
def _small_file_limit() -> Iterator[None]:
    """Limit files of this process to 50 kB, as on a disk that is nearly full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("_small_file_limit")
def test_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    weights = {"w": torch.zeros(100_000)}
    save_checkpoint(tmp_path / "a.pt", PAYLOAD)
    write_safetensors(tmp_path / "a.safetensors", {"w": torch.ones(2)}, {})
    with pytest.raises(UserError, match=r"a.pt: cannot be written: File too large$"):
        save_checkpoint(tmp_path / "a.pt", weights)
    with pytest.raises(UserError, match=r"a.safetensors: cannot be written: File too large$"):
        write_safetensors(tmp_path / "a.safetensors", weights, {})
    assert load_checkpoint(tmp_path / "a.pt")["step"] == 7
    torch.testing.assert_close(read_safetensors(tmp_path / "a.safetensors")[0]["w"], torch.ones(2))
    assert names(tmp_path) == ["a.pt", "a.safetensors"]


@pytest.mark.extended
def test_killed_save_keeps_the_old_file(tmp_path: Path) -> None:
    script = """
import os, signal, sys, torch
from pathlib import Path
from engine.checkpoint import CheckpointFolder
class Killer:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)
folder = CheckpointFolder(Path(sys.argv[1]), keep=2)
folder.save(1, {"step": 1})
folder.save(2, {"w": torch.zeros(100_000), "bad": Killer()})
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.load_latest() == {"step": 1}
    assert folder.best() is None
    folder.save(2, {"step": 2})
    assert names(tmp_path) == ["step_00000001.pt", "step_00000002.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_checkpoint_is_rejected(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, PAYLOAD)
    cut(path, int(path.stat().st_size * share))
    with pytest.raises(UserError, match=r"a.pt: expected a checkpoint, got a damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"seed: 1\n", b"\x80\x04abc", b"PK\x03\x04", b"\x89PNG\r\n"], ids=str
)
def test_foreign_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"a.pt: expected a checkpoint") as caught:
        load_checkpoint(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_code_in_a_file_is_rejected(tmp_path: Path) -> None:
    torch.save({"model": ForeignClass()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a.pt: expected a checkpoint"):
        load_checkpoint(tmp_path / "a.pt")
    torch.save(torch.zeros(2), tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"b.pt: expected a checkpoint, got a saved Tensor"):
        load_checkpoint(tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"c.pt: no such file"):
        load_checkpoint(tmp_path / "c.pt")


def test_folder_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints", keep=2)
    assert folder.latest() is None
    assert folder.best() is None
    assert folder.load_latest() is None
    for step in (9, 100, 20_000, 100_000_000):
        folder.save(step, {"step": step})
        if step == 100:
            folder.save_best({"step": step})
    expected = ["best.pt", "step_00020000.pt", "step_100000000.pt"]
    assert names(folder.directory) == expected
    assert folder.latest() == folder.directory / "step_100000000.pt"
    assert folder.load_latest() == {"step": 100_000_000}
    best = folder.best()
    assert best is not None
    assert load_checkpoint(best) == {"step": 100}


def test_error_of_an_unreadable_checkpoint_names_the_previous_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(1, {"step": 1})
    folder.save_best({"step": 1})
    folder.save(2, {"step": 2})
    cut(tmp_path / "step_00000002.pt", 100)
    with pytest.raises(UserError, match=r"2.pt: .*; remove it to resume from .*step_00000001.pt$"):
        folder.load_latest()
    (tmp_path / "step_00000001.pt").unlink()
    with pytest.raises(UserError, match=r"there is no earlier one$"):
        folder.load_latest()


def test_weights_and_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = {
        "conv": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "grown": torch.nn.Parameter(torch.randn(2)),
        "view": torch.arange(6).reshape(2, 3).T,
    }
    write_safetensors(path, state, {"classes": '["cat"]'})
    got, metadata = read_safetensors(path)
    expected: dict[str, Any] = {name: value.detach() for name, value in state.items()}
    torch.testing.assert_close(got, expected, rtol=0, atol=0, check_stride=False)
    assert metadata == {"classes": '["cat"]'}
    assert names(tmp_path) == ["model.safetensors"]
    write_safetensors(path, state, {})
    assert read_safetensors(path)[1] == {}


@pytest.mark.parametrize("size", [0, 4, 60, 200])
def test_truncated_weights_are_rejected(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": torch.zeros(100)}, {"a": "b"})
    cut(path, size)
    with pytest.raises(UserError, match=r"model.safetensors: expected a safetensors file"):
        read_safetensors(path)
    with pytest.raises(UserError, match=r"none.safetensors: no such file"):
        read_safetensors(tmp_path / "none.safetensors")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_restored_generators_continue_their_sequence(tmp_path: Path, device: str) -> None:
    save_checkpoint(tmp_path / "a.pt", rng_state())
    expected = torch.rand(5, device=device)
    torch.rand(3, device=device)
    set_rng_state(load_checkpoint(tmp_path / "a.pt"))
    torch.testing.assert_close(torch.rand(5, device=device), expected, rtol=0, atol=0)


def test_output_folder_is_created_or_rejected(tmp_path: Path) -> None:
    prepare_output(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run: expected a writable folder"):
        prepare_output(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"file: expected a writable folder"):
        prepare_output(tmp_path / "file")


def test_compressed_zip_is_rejected(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"a\.pt: expected a checkpoint, got a compressed zip"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**12),
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
    ],
    ids=["view", "sparse", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_expanded_sparse_and_meta_tensors_are_rejected(
    tmp_path: Path, tensor: torch.Tensor
) -> None:
    torch.save({"model": {"deep": [tensor]}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: expected (dense CPU tensors|a checkpoint)"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("state", [{}, {"cpu": torch.zeros(3)}, {"cpu": "x"}], ids=str)
def test_invalid_generator_state_is_rejected(state: Any) -> None:
    with pytest.raises(UserError, match="expected the state of torch's generators, got"):
        set_rng_state(state)
