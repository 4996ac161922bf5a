from pathlib import Path

import pytest

from detection.predict import load_detector
from tests.reference.images import smooth_image
from tools.lab.benchmarks.predict import SMALL, TimedRun, prediction, write_run
from tools.lab.benchmarks.settings import Settings


@pytest.mark.slow
def test_prediction_is_measured_killed_and_resumed(tmp_path: Path, data_dir: Path) -> None:
    lines: list[str] = []
    settings = Settings(folder=tmp_path, log=lines.append, small=True, images=20)
    share, memory, different = prediction(settings)
    assert 0 < share.value < 100
    assert 0.5 < memory.value < 2
    assert different.value == 0
    assert different.detail.startswith("of 22: ")
    assert any(line.startswith("killed after") for line in lines)


def test_the_network_of_the_table_loads(tmp_path: Path) -> None:
    detector = load_detector(write_run(tmp_path, SMALL), device="cpu")
    assert str(SMALL) == "ResNet-18 FPN at 192 (64 channels, 300 RoIs)"
    assert len(detector.predict([smooth_image()])[0]) > 0


def test_peaks_are_those_of_quarters() -> None:
    assert TimedRun(1.0, 2.0, [5, 9, 3, 1, 1, 1, 7, 6, 2, 1]).quarters() == (9, 6)
    assert TimedRun(1.0, 2.0, [5]).quarters() == (5, 5)
