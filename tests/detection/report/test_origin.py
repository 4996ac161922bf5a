"""The report's section on the training: which curves its charts draw."""

from typing import Any

from detection.report.origin import training_section


def test_chart_says_how_many_losses_it_leaves_out() -> None:
    losses = {f"roi_box_{stage}": [1.0, 0.5] for stage in range(7)}
    train: dict[str, list[Any]] = {"step": [1, 2], "loss": [7.0, 3.5], **losses}
    assert "Training losses, 6 of 8" in training_section({"train": train}).body


def test_count_of_skipped_images_is_no_loss() -> None:
    train: dict[str, list[Any]] = {"step": [1, 2], "loss": [7.0, 3.5], "images_skipped": [0, 2]}
    body = training_section({"train": train}).body
    assert "Training losses" in body
    assert "images_skipped" not in body
