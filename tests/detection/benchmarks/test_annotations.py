from pathlib import Path

from detection.benchmarks.annotations import annotation_loading
from detection.benchmarks.settings import Settings


def test_both_sides_agree(tmp_path: Path) -> None:
    said: list[str] = []
    rows = annotation_loading(Settings(folder=tmp_path, say=said.append, rounds=1, small=True))
    assert [(row.unit, row.at_least, row.aim) for row in rows] == [
        ("x", 20, 29),
        ("x", None, None),
        ("MB", 250, 175),
        ("MB", 250, 175),
    ]
    assert all(row.value > 0 for row in rows[:2])
    assert said == ["wrote 0 MB of annotations"]
