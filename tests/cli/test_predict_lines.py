"""JSON lines of a prediction: read in image order, without holding them in memory."""

import json
import tracemalloc
from pathlib import Path

import pytest

from detection.commands.predict_formats import write_results
from detection.commands.predict_lines import ResultLines
from detection.data.coco import ClassMap
from engine.errors import UserError

CLASSES = ClassMap(("cow",), (4,))


def open_lines(path: Path, count: int, *, resume: bool = False, job: str = "a") -> ResultLines:
    return ResultLines(
        path, {"job": job}, count=count, start=lambda: {"numbers": [7]}, resume=resume
    )


def test_lines_are_read_by_index_and_resumed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with open_lines(path, 6) as lines:
        lines.append([(4, {"x": 1}), (0, {"x": 2})])
        lines.append([(3, {"x": 3})])
        assert [(line["image"], line["x"]) for line in lines] == [(0, 2), (3, 3), (4, 1)]
    with path.open("ab") as file:
        file.write(b'{"image": 1, "left": 1, "x": 5}\n{"image": 2, "le')
    with open_lines(path, 6, resume=True) as lines:
        assert lines.missing().tolist() == [1, 2, 5]
        assert lines.started == {"numbers": [7]}
        lines.append([(5, {"x": 6})])
        assert [line["x"] for line in lines] == [2, 3, 1, 6]
    written = map(json.loads, path.read_text().splitlines())
    assert [line.get("x") for line in written] == [None, 1, 2, 3, 6]
    with pytest.raises(UserError, match=r'--resume: expected job as in .*, "a", got "b"$'):
        open_lines(path, 6, resume=True, job="b")
    with open_lines(path, 6) as lines:  # from the start
        assert len(lines.missing()) == 6


def test_results_are_not_held_in_memory(tmp_path: Path) -> None:
    count = 2000
    entry = {"category_id": 4, "bbox": [0.1, 0.2, 3.3, 4.4], "score": 0.123456789}
    tracemalloc.start()
    try:
        with open_lines(tmp_path / "a.jsonl", count) as lines:
            for first in range(0, count, 4):
                batch = range(first, first + 4)
                found = [{"image_id": index, **entry} for index in batch for _ in range(10)]
                lines.append(
                    [
                        (index, {"file_name": "a", "detections": found[place * 10 :][:10]})
                        for place, index in reversed(list(enumerate(batch)))
                    ]
                )
            write_results(lines, tmp_path, CLASSES)
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = (tmp_path / "detections.json").stat().st_size
    assert peak < size / 5
    results = json.loads((tmp_path / "detections.json").read_text())
    assert [result["image_id"] for result in results] == [
        i for i in range(count) for _ in range(10)
    ]
