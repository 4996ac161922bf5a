from pathlib import Path

import pytest

from engine.errors import UserError
from tools.lab.benchmarks.images import coco128
from tools.lab.benchmarks.padding import padding
from tools.lab.benchmarks.settings import Settings


def test_share_of_padding_is_small(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESDET_DATA", str(data_dir))
    lines: list[str] = []
    rows = padding(Settings(folder=tmp_path, log=lines.append, small=True))
    assert [(row.promised, row.aim) for row in rows] == [(1.06, 1.03), (1.10, 1.05)] * 2
    assert all(row.holds for row in rows)
    assert lines == ["1000 images with the sizes of 128 of COCO's training set"]


def test_error_names_missing_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESDET_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"coco128.*no such file; set RESDET_DATA"):
        coco128()
