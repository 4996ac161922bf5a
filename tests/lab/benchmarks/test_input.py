from pathlib import Path

import pytest
import torch

from tools.lab.benchmarks import input as input_benchmark
from tools.lab.benchmarks import input_squares
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.images import coco128
from tools.lab.benchmarks.settings import Settings


@pytest.mark.extended
def test_both_sides_agree(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESDET_DATA", str(data_dir))
    threads = torch.get_num_threads()
    settings = Settings(folder=tmp_path, log=print, rounds=1, small=True)
    rows = input_benchmark.input_pipeline(settings)
    assert [(row.promised, row.aim) for row in rows[:2]] == [(3.2, 4.3), (1.6, 2.1)]
    assert all("pixels differ by 0." in row.detail for row in rows[:2])
    assert [(row.promised, row.unit) for row in rows[2:]] == [(40.0, "images/s")] * 3
    assert torch.get_num_threads() == threads


def test_different_pixels_are_an_error(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESDET_DATA", str(data_dir))
    monkeypatch.setattr(input_benchmark, "MEAN", (0.5, 0.5, 0.5))
    monkeypatch.setattr(input_benchmark, "MAX_PIXEL_DIFFERENCE", 0.1)
    settings = Settings(folder=tmp_path, log=print, rounds=1, small=True)
    with pytest.raises(DisagreementError, match="pixels of image 0: expected a mean difference"):
        input_benchmark.input_pipeline(settings)


@pytest.mark.parametrize("kind", ["PIXEL", "MASK"])
def test_different_squares_are_an_error(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("RESDET_DATA", str(data_dir))
    monkeypatch.setattr(input_squares, f"MAX_{kind}_DIFFERENCE", 1e-5)
    with pytest.raises(DisagreementError, match=f"{kind.lower()}s of image 0"):
        input_squares.check_same(coco128(), range(1), with_masks=True)
