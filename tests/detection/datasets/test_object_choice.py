import json
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.coco import Annotations, read_coco
from detection.datasets.object_choice import (
    annotation_id,
    near_duplicates,
    random_objects,
    strangeness_of,
    strangest_objects,
)
from tests.detection.datasets.coco_files import make_content


def read(path: Path, content: Any, boxes: Any = ()) -> Annotations:
    for each, box in zip(content["annotations"], boxes, strict=False):
        each["bbox"] = box
    path.write_text(json.dumps(content))
    return read_coco(path, for_scoring=True)


def strangest(annotations: Annotations, label: int, count: int) -> list[tuple[int, str]]:
    found = strangest_objects(annotations, label, count, strangeness=strangeness_of(annotations))
    return [(annotation_id(annotations, each.row), each.reason) for each in found]


def test_size_aspect_duplicates_and_tiny_ones_come_first(tmp_path: Path) -> None:
    names = {f"{i}.jpg": ["cat"] * 10 for i in range(4)}
    content = make_content({**names, "x.jpg": ["dog", "cat"]})
    boxes: list[list[float]] = [
        [20.0 * (i % 3), 15 * (i % 4), 20 + i % 3, 20 - i % 2] for i in range(10)
    ] * 4
    boxes[7] = [5, 5, 1.5, 2]  # tiny
    boxes[13] = [0, 20, 80, 5]  # aspect 16, side 20
    boxes[25] = [0, 0, 80, 60]  # large
    boxes[31] = [0, 0, 20, 21]  # boxes[30] once more
    found = read(tmp_path / "a.json", content, boxes)
    first = dict(strangest(found, 0, 4))
    assert set(first) == {107, 113, 125, 131}
    assert "tiny: side 1.7 pixels" in first[107]
    assert first[113].startswith("aspect 16, median 1")
    assert first[125].startswith("side 69.3, median 20")
    assert first[131].startswith("near-duplicate of 130, IoU 0.95")
    assert strangest(found, 2, 4) == []


def test_near_duplicates_against_all_pairs(data_dir: Path) -> None:
    path = data_dir / "bccd" / "annotations" / "train.json"
    found = read_coco(path, on_bad_box="skip", for_scoring=True)
    twin, iou = near_duplicates(found)
    expected: dict[int, tuple[int, float]] = {}
    for row in range(len(found)):
        objects = found.objects_of(row)
        boxes, labels = found.boxes[objects].astype(np.float64), found.labels[objects]
        for second in range(len(boxes)):
            for first in range(second):
                top_left = np.maximum(boxes[first, :2], boxes[second, :2])
                sides = (np.minimum(boxes[first, 2:], boxes[second, 2:]) - top_left).clip(0)
                areas = [np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (first, second)]
                value = sides.prod() / (sum(areas) - sides.prod())
                if labels[first] == labels[second] and value >= 0.9:
                    at = objects.start + second
                    if value > expected.get(at, (0, 0.0))[1]:
                        expected[at] = (objects.start + first, value)
    assert expected  # BCCD has cells that are annotated twice
    rows = np.flatnonzero(twin >= 0).tolist()
    assert rows == sorted(expected)
    assert twin[rows].tolist() == [expected[row][0] for row in rows]
    np.testing.assert_allclose(iou[rows], [expected[row][1] for row in rows])


def test_random_objects_depend_on_the_seed_alone(tmp_path: Path) -> None:
    content = make_content({f"{i}.jpg": ["cat", "dog"] for i in range(30)})
    found = read(tmp_path / "a.json", content)
    chosen = [random_objects(found, 1, 5, seed=seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(found.labels[each.row] == 1 for each in chosen[0])
    assert len({each.row for each in chosen[0]}) == 5
    assert chosen[0][0].reason == "30 x 20 pixels"
    assert len(random_objects(found, 1, 100, seed=0)) == 30
    assert random_objects(found, 2, 5, seed=0) == []
