from pathlib import Path

import pytest
import torch

from tools.lab.benchmarks.scoring import evaluation, make_detections, make_objects
from tools.lab.benchmarks.settings import Settings


@pytest.mark.extended
def test_both_sides_give_the_same_metrics(tmp_path: Path) -> None:
    lines: list[str] = []
    (row,) = evaluation(Settings(folder=tmp_path, log=lines.append, rounds=1, small=True))
    assert lines == ["144 objects, 2000 detections in 20 images"]
    assert (row.unit, row.promised, row.aim) == ("x", 30, 60)


def test_detections_are_reproducible_and_fit_their_image() -> None:
    objects = make_objects(10)[3::10]
    found, again = (make_detections(objects, seed=3) for _ in range(2))
    torch.testing.assert_close(found.boxes, again.boxes, rtol=0, atol=0)
    assert len(found) == len(make_detections([], seed=4)) == 100
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert {each["category_id"] - 1 for each in objects} <= set(found.labels.tolist())
