"""Training on squares with pasted objects."""

from pathlib import Path

import pytest

from tests.detection.tasks.tiny import tiny_task


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_both_tasks_train_on_squares(tmp_path: Path, task: str) -> None:
    """Masks are read in both; the batch of a detector without a mask head carries none."""
    config = tiny_task(tmp_path, "fpn", task=task)[0].config
    augment = {"large_scale_jitter": {"size": 96}, "copy_paste_prob": 1.0}
    data = config.data.model_dump() | {"augment": augment}
    made, batch = tiny_task(tmp_path, "fpn", task=task, data=data)
    assert batch.images.pixels.shape == (4, 3, 96, 96)
    assert (batch.targets.masks is not None) == (task == "segmentation")
    losses = made.losses(batch)
    assert ("mask" in losses) == (task == "segmentation")
    assert all(value.isfinite() for value in losses.values())
