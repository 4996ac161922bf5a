"""curves.png: what it draws, and that it is drawn however a training ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from backbones import plots
from backbones.plots import plot_training_curves, plot_when_training_ends

PNG = b"\x89PNG"


def log_something(folder: Path) -> None:
    records: list[dict[str, Any]] = [
        {"kind": "train", "step": 1, "loss": 1.0, "mask": 0.5, "lr": 0.1},
        {"kind": "eval", "step": 1, "ap": 0.5, "mask_ap": None},
        {"kind": "final", "step": 1, "ap": 0.5},
    ]
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "tr')


def test_losses_and_scores_of_masks_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_something(tmp_path)
    drawn = {}
    keep = plots._plot
    monkeypatch.setattr(
        plots,
        "_plot",
        lambda axes, records, names, title: (
            drawn.update({title: list(names)}) or keep(axes, records, names, title=title)
        ),
    )
    assert plot_training_curves(tmp_path).read_bytes().startswith(PNG)
    assert drawn["losses"] == ["loss", "mask"]
    assert drawn["scores"] == ["ap", "mask_ap"]


def test_curves_are_drawn_after_an_interruption(tmp_path: Path) -> None:
    def train() -> None:
        with plot_when_training_ends(tmp_path, is_main=True):
            log_something(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_a_start_that_logs_nothing_draws_nothing(tmp_path: Path) -> None:
    log_something(tmp_path)
    with (
        pytest.raises(ValueError, match="bad data"),
        plot_when_training_ends(tmp_path, is_main=True),
    ):
        raise ValueError("bad data")
    with plot_when_training_ends(tmp_path / "nothing", is_main=True):
        pass
    assert not (tmp_path / "curves.png").exists()


def test_curves_that_cannot_be_written_end_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "curves.png").symlink_to("/dev/full")
    with plot_when_training_ends(tmp_path, is_main=True):
        log_something(tmp_path)
    assert "curves.png: cannot be written: " in capsys.readouterr().out
