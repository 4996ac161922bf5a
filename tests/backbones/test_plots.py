"""Training curves in curves.png: contents, and plotting when a training ends or fails."""

import json
from pathlib import Path
from typing import Any

import pytest

from backbones import plots
from backbones.classification.metrics import ClassificationEvaluator
from backbones.plots import SCORES, loss_names, plot_training_curves, plot_when_training_ends
from detection.localization.evaluation import LocalizationEvaluator

PNG = b"\x89PNG"


def log_something(folder: Path) -> None:
    records: list[dict[str, Any]] = [
        {"kind": "train", "step": 1, "loss": 1.0, "mask": 0.5, "lr": 0.1},
        {"kind": "eval", "step": 1, "ap": 0.5, "mask_ap": None},
        {"kind": "final", "step": 1, "ap": 0.5},
    ]
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "tr')


@pytest.mark.extended
def test_losses_and_scores_of_masks_are_plotted(
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


@pytest.mark.parametrize(
    "metric",
    [
        *("ap", "mask_ap", "lvis_ap", "mask_lvis_ap"),  # of CocoEvaluator
        ClassificationEvaluator.main_metric,
        LocalizationEvaluator.main_metric,
    ],
)
def test_main_metric_of_every_task_is_drawn(metric: str) -> None:
    assert metric in SCORES


def test_all_losses_of_a_training_record_are_drawn_and_nothing_else() -> None:
    losses = ["loss", "localization_class", "localization_box", "roi_box_3", "class"]
    measured = ["grad_norm", "train_error", "data_wait", "images_skipped", "images_per_second"]
    assert loss_names(["kind", "step", *losses, *measured, "lr"]) == losses


def test_curves_are_plotted_after_an_interruption(tmp_path: Path) -> None:
    def train() -> None:
        with plot_when_training_ends(tmp_path, is_main=True):
            log_something(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_training_that_logged_nothing_plots_nothing(tmp_path: Path) -> None:
    log_something(tmp_path)
    with (
        pytest.raises(ValueError, match="bad data"),
        plot_when_training_ends(tmp_path, is_main=True),
    ):
        raise ValueError("bad data")
    with plot_when_training_ends(tmp_path / "nothing", is_main=True):
        pass
    assert not (tmp_path / "curves.png").exists()


def test_failure_to_write_the_plot_is_not_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "curves.png").symlink_to("/dev/full")
    with plot_when_training_ends(tmp_path, is_main=True):
        log_something(tmp_path)
    assert "curves.png: cannot be written: " in capsys.readouterr().out
