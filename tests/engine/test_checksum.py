"""Checksums: any damage to a checkpoint or weights file is detected."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from engine.checkpoint import (
    load_checkpoint,
    read_safetensors,
    save_checkpoint,
    write_safetensors,
)
from engine.checksum import checksum_note
from engine.errors import UserError

STATE = {"conv.weight": torch.arange(40.0).reshape(5, 8), "steps": torch.tensor(3)}
METADATA = {"class_names": '["cat", "dög"]', "config": '{"seed": 0}', "category_ids": "[1, 2]"}
PAYLOAD = {
    "model": STATE,
    "average": None,
    "progress": {"step": 7, "best": 0.5},
    "metadata": METADATA,
}

Read = Callable[[Path], Any]


def write_file_of_kind(kind: str, folder: Path) -> tuple[Path, Read]:
    """Write a small file; return its path and the function that reads it."""
    path = folder / f"a.{kind}"
    if kind == "pt":
        save_checkpoint(path, PAYLOAD)
        return path, load_checkpoint
    write_safetensors(path, STATE, METADATA)
    return path, read_safetensors


def flips(size: int) -> list[tuple[int, int]]:
    """Return (byte, bit) to flip: every byte at both ends, and random ones in between."""
    rng = random.Random(0)
    ends = [*range(24), *range(size - 90, size)]
    return [(at, rng.randrange(8)) for at in ends] + [
        (rng.randrange(size), rng.randrange(8)) for _ in range(400)
    ]


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_flipped_bits_are_detected(tmp_path: Path, kind: str) -> None:
    path, read = write_file_of_kind(kind, tmp_path)
    content = path.read_bytes()
    accepted, messages = [], set()
    for at, bit in flips(len(content)):
        altered = bytearray(content)
        altered[at] ^= 1 << bit
        path.write_bytes(altered)
        try:
            read(path)
            accepted.append((at, bit))
        except UserError as error:
            messages.add(str(error))
    assert accepted == []
    assert all(str(path) in message and "\n" not in message for message in messages)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "change",
    [
        lambda b: b[:-1],
        lambda b: b[:-60],
        lambda b: b[: len(b) // 2],
        lambda b: b + b"\0",
        lambda b: b + b[-90:],
        lambda b: b[:200] + b"\0" * 16 + b[216:],
        lambda b: b[:200] + b[201:],
        lambda b: b[:200] + b"\0" + b[200:],
        lambda b: b"",
    ],
    ids=["less", "end", "half", "more", "twice", "hole", "dropped", "inserted", "empty"],
)
def test_changed_length_is_detected(
    tmp_path: Path, kind: str, change: Callable[[bytes], bytes]
) -> None:
    path, read = write_file_of_kind(kind, tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=rf"a\.{kind}: expected a "):
        read(path)


def test_intact_files_are_read_by_us_and_by_other_libraries(tmp_path: Path) -> None:
    path, read = write_file_of_kind("pt", tmp_path)
    torch.testing.assert_close(read(path)["model"], STATE)
    torch.testing.assert_close(torch.load(path, weights_only=True)["model"], STATE)
    assert checksum_note(path) is None
    path, read = write_file_of_kind("safetensors", tmp_path)
    assert read(path)[1] == METADATA
    torch.testing.assert_close(safetensors.torch.load_file(path), STATE)
    assert checksum_note(path) is None


def test_files_without_a_checksum_are_read_with_a_note(tmp_path: Path) -> None:
    torch.save(PAYLOAD, tmp_path / "old.pt")
    torch.save(STATE, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(STATE, tmp_path / "old.safetensors", METADATA)
    torch.testing.assert_close(load_checkpoint(tmp_path / "old.pt")["model"], STATE)
    torch.testing.assert_close(load_checkpoint(tmp_path / "legacy.pth"), STATE)
    assert read_safetensors(tmp_path / "old.safetensors")[1] == METADATA
    for name in ("old.pt", "legacy.pth", "old.safetensors"):
        note = checksum_note(tmp_path / name)
        assert note is not None
        assert f"{name}: has no checksum" in note


def test_equal_weights_and_metadata_give_equal_bytes(tmp_path: Path) -> None:
    # the safetensors library orders metadata differently in each call
    state = {f"layer{i}.weight": torch.full((i + 1,), float(i)) for i in range(9)}
    state |= {f"steps{i}": torch.tensor(i) for i in range(5)}
    text = {f"key {i}": "é" * i for i in range(9)}
    path = tmp_path / "a.safetensors"
    contents = set()
    for _ in range(5):
        for backwards in (False, True):
            tensors, texts = list(state.items()), list(text.items())
            step = -1 if backwards else 1
            write_safetensors(path, dict(tensors[::step]), dict(texts[::step]))
            contents.add(path.read_bytes())
    (content,) = contents
    assert int.from_bytes(content[:8], "little") % 8 == 0


def test_header_longer_than_the_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b'{"a":1}')
    with pytest.raises(UserError, match=r"a\.safetensors: expected a safetensors file"):
        read_safetensors(path)
