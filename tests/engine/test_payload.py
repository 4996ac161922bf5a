"""Resuming from an invalid checkpoint: every wrong part is a one-line error."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.errors import UserError
from engine.schema import LoaderConfig, LoopConfig, RunConfig
from engine.trainer import fit
from tests.engine.toy import ToyTask

W = torch.ones(3)
WRONG: dict[str, list[Any]] = {
    "model": [None, 3, [], {1: W}, {"w": 3}, {}, {"w": W}],
    "optimizer": [None, "x", {"w": 3}, {"w": {"momentum_buffer": 3}}, {"other": {}}],
    "average": ["x", {"w": 3}, {}, {"w": W}],
    "progress": [
        *(None, 3, [], {}, {"step": "2"}, {"step": -1}, {"step": True}, {"step": None}),
        *({"step": 2, "best": "x"}, {"step": 2, "evaluation_due": 3}, {"step": 10**30}),
    ],
    "meters": [3, "x", [3], [{}], [{"sums": {}, "good": 1}]],
    "rng": [None, {}, {"cpu": 3}, {"cpu": W}, {"cpu": torch.zeros(5, dtype=torch.uint8)}],
    "config": [None, "x", [], {"task": []}, {"loop": 3}, {"nothing": 1}],
    "metadata": [None, "x", [], {}],
}
CASES = [
    pytest.param(key, value, id=f"{key}={str(value)[:30]}")
    for key, values in WRONG.items()
    for value in values
]


def train_toy(folder: Path, *, max_steps: int = 4, resume: bool = False) -> None:
    """Train the toy task with an EMA of the weights."""
    loop = LoopConfig(max_steps=max_steps, batch_size=4, checkpoint_every=2, ema_decay=0.9)
    config = RunConfig(loader=LoaderConfig(workers=0), loop=loop)
    fit(ToyTask(), config, output=folder, resume=resume, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_toy(folder, max_steps=2)
    return folder


@pytest.mark.parametrize(("key", "value"), CASES)
def test_part_of_the_wrong_type_is_rejected(
    run: Path, tmp_path: Path, key: str, value: Any
) -> None:
    payload = load_checkpoint(run / "checkpoints" / "step_00000002.pt")
    assert key in payload
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path / "checkpoints" / "step_00000002.pt", {**payload, key: value})
    with pytest.raises(UserError) as caught:
        train_toy(tmp_path, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [key for key in WRONG if key != "meters"])
def test_missing_part_is_rejected(run: Path, tmp_path: Path, key: str) -> None:
    payload = load_checkpoint(run / "checkpoints" / "step_00000002.pt")
    del payload[key]
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path / "checkpoints" / "step_00000002.pt", payload)
    if key == "average":  # None in a run without EMA
        train_toy(tmp_path, resume=True)
        return
    with pytest.raises(UserError, match=f"expected a run's checkpoint with its {key}, got nothing"):
        train_toy(tmp_path, resume=True)


def test_old_checkpoint_without_a_checksum_is_resumed_with_a_note(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = load_checkpoint(run / "checkpoints" / "step_00000002.pt")
    (tmp_path / "checkpoints").mkdir()
    torch.save(payload, tmp_path / "checkpoints" / "step_00000002.pt")
    train_toy(tmp_path, resume=True)
    assert "resumed at step 2; " in (out := capsys.readouterr().out)
    assert "step_00000002.pt: has no checksum" in out
