import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data.coco import read_coco
from detection.datasets.statistics import Statistics, statistics_of
from detection.datasets.statistics_plot import write_statistics_plot
from tests.detection.datasets.coco_files import make_content


def statistics(path: Path, content: Any | None = None) -> Statistics:
    if content is not None:
        path.write_text(json.dumps(content))
    return statistics_of(read_coco(path, on_bad_box="skip", need_boxes=False, with_masks=False))


@pytest.fixture
def found(tmp_path: Path) -> Statistics:
    content = make_content({"a": ["cat", "cat", "dog"], "b": ["dog"], "c": [], "d": ["cat", "dog"]})
    content["images"][1] |= {"height": 50, "width": 50}
    boxes = [
        [0, 0, 10, 40],
        [0, 0, 20, 20],
        [0, 0, 4, 9],
        [0, 0, 50, 50],
        [5, 5, 9, 1],
        [1, 1, 8, 2],
    ]
    for each, box in zip(content["annotations"], boxes, strict=True):
        each["bbox"] = box
    content["annotations"][4]["iscrowd"] = 1  # the cat of image d
    return statistics(tmp_path / "a.json", content)


def test_counts_and_medians(found: Statistics) -> None:
    cat, dog, owl = found.classes
    assert (cat.images, cat.objects, cat.crowd) == (2, 3, 1)
    assert (dog.images, dog.objects, dog.crowd) == (3, 3, 0)
    assert (cat.small, cat.medium, cat.large) == (2, 0, 0)
    assert (dog.small, dog.medium, dog.large) == (2, 1, 0)
    assert cat.median_side == pytest.approx(20)
    assert cat.median_aspect == pytest.approx((0.25 + 1) / 2)
    assert dog.median_side == pytest.approx(6)  # of 6, 50, 4
    assert dog.median_relative_side == pytest.approx(6 / np.sqrt(80 * 60))
    assert (owl.images, owl.objects, owl.median_side, owl.median_aspect) == (0, 0, None, None)
    assert (found.images, found.empty_images, found.objects) == (4, 1, 6)
    assert found.image_sizes == ((80, 60, 3), (50, 50, 1))
    assert found.histogram() == {"0": 1, "1": 1, "2": 1, "3": 1}
    assert len(found.sides) == 5


def test_pairs_and_lift(found: Statistics) -> None:
    (pair,) = found.pairs
    assert (pair.first, pair.second, pair.images) == (0, 1, 2)
    assert pair.lift == pytest.approx(2 * 4 / (2 * 3))


def test_numbers_are_json(found: Statistics) -> None:
    numbers = json.loads(json.dumps(found.numbers(), allow_nan=False))
    assert numbers["quantiles"]["objects an image"]["median"] == 1.5
    assert numbers["pairs"][0]["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("objects", [{"a": []}, {"a": ["dog"]}], ids=["none", "one"])
def test_few_objects(tmp_path: Path, objects: dict[str, list[str]]) -> None:
    found = statistics(tmp_path / "a.json", make_content(objects))
    assert found.pairs == ()
    assert found.objects == len(objects["a"])
    json.dumps(found.numbers(), allow_nan=False)


def test_real_annotations_against_counting_one_by_one(data_dir: Path) -> None:
    path = data_dir / "coco128" / "annotations" / "instances_train2017.json"
    found = statistics(path)
    content = json.loads(path.read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    by_image: dict[int, set[str]] = {each["id"]: set() for each in content["images"]}
    for each in content["annotations"]:
        by_image[each["image_id"]].add(names[each["category_id"]])
    together = Counter(
        frozenset(pair) for each in by_image.values() for pair in combinations(sorted(each), 2)
    )
    order = [each.name for each in found.classes]
    assert {frozenset((order[p.first], order[p.second])): p.images for p in found.pairs} == together
    for each in found.classes:
        objects = [a for a in content["annotations"] if names[a["category_id"]] == each.name]
        plain = [a for a in objects if not a["iscrowd"]]
        assert each.objects == len(objects)
        assert each.crowd == len(objects) - len(plain)
        assert each.images == sum(each.name in classes for classes in by_image.values())
        assert each.small == sum(a["area"] < 32**2 for a in plain)
        assert each.large == sum(a["area"] >= 96**2 for a in plain)
        if plain:
            sides = [np.sqrt(a["bbox"][2] * a["bbox"][3]) for a in plain]
            assert each.median_side == pytest.approx(np.median(sides), rel=1e-3)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("objects", "name"),
    [({"a": []}, "no objects"), ({"a": ["dog"], "b": ["dog", "cat"]}, "日本 $x$ " + "n" * 50)],
)
def test_plot_of_any_data(tmp_path: Path, objects: dict[str, list[str]], name: str) -> None:
    content = make_content(objects)
    content["categories"][1]["name"] = name
    found = statistics(tmp_path / "a.json", content)
    write_statistics_plot(tmp_path / "stats.png", found, title=name)
    assert (tmp_path / "stats.png").read_bytes().startswith(b"\x89PNG")
