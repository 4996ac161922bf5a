from pathlib import Path

import pytest

from tools.lab.benchmarks.annotations import annotation_loading, annotation_statistics
from tools.lab.benchmarks.memory import worker_memory
from tools.lab.benchmarks.settings import Settings


@pytest.mark.extended
def test_both_sides_agree(tmp_path: Path) -> None:
    lines: list[str] = []
    rows = annotation_loading(Settings(folder=tmp_path, log=lines.append, rounds=1, small=True))
    assert [(row.unit, row.promised, row.aim) for row in rows] == [
        ("x", 20, 29),
        ("x", None, None),
        ("MB", 250, 175),
        ("MB", 250, 175),
    ]
    assert max(rows[2].value, rows[3].value) < 100  # of a tiny file, so no order is known
    assert lines == ["wrote 0 MB of annotations"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_memory_of_four_workers(tmp_path: Path) -> None:
    rows = worker_memory(Settings(folder=tmp_path, log=lambda _: None, small=True))
    whole, growth = (row.value for row in rows)
    assert 50 < whole < 5000
    assert 0 <= growth < whole / 2


@pytest.mark.extended
def test_the_whole_command_is_timed(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path, log=lambda _: None, rounds=1, small=True)
    (row,) = annotation_statistics(settings)
    assert (row.unit, row.promised, row.smaller_is_better) == ("s", 20, True)
    assert row.value > 0
    assert (tmp_path / "stats" / "stats.json").is_file()
