from pathlib import Path

import pytest

from tools.lab.benchmarks.pretraining_input import RECIPES, pretraining_input
from tools.lab.benchmarks.settings import Settings


@pytest.mark.extended
def test_copies_are_read(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESDET_DATA", str(data_dir))
    rows = pretraining_input(Settings(folder=tmp_path, log=print, rounds=1, small=True))
    assert len(rows) == 3 * len(RECIPES)  # JPEG and raw copies, and decoding on the device
    assert all("images/s" in row.detail for row in rows)
