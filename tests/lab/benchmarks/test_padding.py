from pathlib import Path

import pytest

from engine.errors import UserError
from tools.lab.benchmarks.images import coco128
from tools.lab.benchmarks.padding import padding
from tools.lab.benchmarks.settings import Settings


def test_little_is_padding(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESDET_DATA", str(data_dir))
    said: list[str] = []
    rows = padding(Settings(folder=tmp_path, say=said.append, small=True))
    assert [(row.promised, row.aim) for row in rows] == [(1.06, 1.03), (1.10, 1.05)] * 2
    assert all(row.holds for row in rows)
    assert said == ["1000 images with the sizes of 128 of COCO's training set"]


def test_missing_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESDET_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"coco128.*no such file; RESDET_DATA is to name"):
        coco128()
