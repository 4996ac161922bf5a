import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from backbones.plots import plot_training_curves
from detection.evaluation.report import write_pr_curves


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def make_precision(num_classes: int) -> np.ndarray:
    falling = np.linspace(1, 0, 101)[None, :, None]
    return np.repeat(np.repeat(falling, 10, axis=0), num_classes, axis=2)


@pytest.mark.parametrize("num_classes", [1, 3, 9], ids=["one", "row", "two rows"])
def test_panels_are_drawn(tmp_path: Path, num_classes: int) -> None:
    path = tmp_path / "curves.png"
    write_pr_curves(path, make_precision(num_classes), [f"class {k}" for k in range(num_classes)])
    assert read(path).std() > 5  # not blank


def test_class_without_objects_gets_no_panel(tmp_path: Path) -> None:
    precision = make_precision(12)
    names = ["a $ b $ c", *map(str, range(11))]
    write_pr_curves(tmp_path / "all.png", precision, names)
    precision[..., 5:] = np.nan
    write_pr_curves(tmp_path / "some.png", precision, names)
    heights = [len(read(tmp_path / name)) for name in ("all.png", "some.png")]
    assert heights[1] < heights[0]
    write_pr_curves(tmp_path / "none.png", np.full((10, 101, 12), np.nan), names)
    assert (tmp_path / "none.png").stat().st_size > 0


def test_course_of_a_run_is_drawn(tmp_path: Path) -> None:
    records = [
        {"kind": "train", "step": 1, "loss": 2.0, "rpn_box": 0.5, "lr": 0.1},
        {"kind": "eval", "step": 1, "ap": None, "ap50": 0.1, "ap/disc": 0.2},
        {"kind": "train", "step": 2, "loss": 1.0, "rpn_box": None, "lr": 0.1},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines)
    path = plot_training_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    assert read(path).std() > 5


def test_course_of_a_run_without_training_lines(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "eval", "step": 1, "ap": 0.5}\n')
    assert plot_training_curves(tmp_path).is_file()
