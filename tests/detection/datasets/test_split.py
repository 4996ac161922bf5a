"""Properties of the division of a COCO file, on drawn cases and on real annotations."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.datasets import split
from detection.datasets.coco_document import CocoDocument, read_document
from detection.datasets.merge import merge
from detection.datasets.split import Split, sizes_of_fractions, split_images
from engine.errors import UserError
from tests.detection.datasets.coco_files import make_content, make_document

NAMES = ("train", "val", "test")


def many(count: int = 60) -> dict[str, list[str]]:
    """File names of five videos with the classes of their objects; every tenth image is empty."""
    rng = random.Random(3)
    return {
        f"v{i % 5}/{i:03d}.jpg": rng.choices(("cat", "dog", "owl"), (8, 3, 1), k=i % 10)
        for i in range(count)
    }


def divide(document: CocoDocument, *fractions: float, **options: Any) -> Split:
    sizes = sizes_of_fractions(fractions, len(document.file_names))
    return split_images(document, sizes, NAMES[: len(fractions)], **options)


def names_of(found: Split) -> list[set[str]]:
    """Return the file names of each part."""
    return [
        {image["file_name"] for image in found.content_of(part)["images"]}
        for part in range(len(found.names))
    ]


def shuffled(content: dict[str, Any]) -> dict[str, Any]:
    rng = random.Random(1)
    lists = ("images", "annotations", "categories")
    return {k: rng.sample(v, len(v)) if k in lists else v for k, v in content.items()}


@pytest.fixture
def document(tmp_path: Path) -> CocoDocument:
    return make_document(tmp_path, make_content(many(), info={"year": 2020}, videos=[{"id": 3}]))


def test_every_image_and_annotation_is_in_one_part(document: CocoDocument) -> None:
    contents = [divide(document, 0.5, 0.3, 0.2).content_of(part) for part in range(3)]
    for key in ("images", "annotations"):
        entries = [entry for content in contents for entry in content[key]]
        assert sorted(entries, key=lambda each: each["id"]) == document.content[key]
    assert [len(content["images"]) for content in contents] == [30, 18, 12]
    for content in contents:
        ids = {image["id"] for image in content["images"]}
        assert {each["image_id"] for each in content["annotations"]} <= ids
        for key in ("info", "videos", "categories"):
            assert content[key] == document.content[key]
        assert list(content) == list(document.content)


def test_order_of_the_file_does_not_matter(tmp_path: Path, document: CocoDocument) -> None:
    other = make_document(tmp_path, shuffled(dict(document.content)), "b.json")
    assert names_of(divide(document, 0.6, 0.2, 0.2)) == names_of(divide(other, 0.6, 0.2, 0.2))
    assert names_of(divide(document, 0.6, 0.4)) == names_of(divide(document, 0.6, 0.4))


def test_seeds_differ(document: CocoDocument) -> None:
    found = [names_of(divide(document, 0.6, 0.4, seed=seed)) for seed in range(3)]
    assert found[0] != found[1] != found[2] != found[0]


def test_counts_leave_a_rest(document: CocoDocument) -> None:
    found = split_images(document, split.sizes_of_counts([20, 10]), NAMES[:2])
    assert found.images_per_part().tolist() == [20, 10, 30]
    assert found.objects_per_part().sum() == len(document.annotations)
    assert len(found.content_of(0)["images"]) == 20


def test_empty_images_are_balanced(document: CocoDocument) -> None:
    assert divide(document, 0.5, 0.5).empty_images_per_part().tolist() == [3, 3, 0]


def test_groups_are_not_divided(document: CocoDocument) -> None:
    groups = split.group_by_pattern(document, r"^(v\d)/")
    found = divide(document, 0.6, 0.4, groups=groups)
    assert found.num_groups == 5
    videos = [{name[:2] for name in names} for names in names_of(found)]
    assert not videos[0] & videos[1]
    assert [len(each) for each in videos] == [3, 2]
    assert found.images_per_part().tolist() == [36, 24, 0]


def test_equal_images_stay_together(document: CocoDocument) -> None:
    pairs = [[row, 59 - row] for row in range(30)]
    found = divide(document, 0.5, 0.5, same=pairs)
    assert all(found.parts[a] == found.parts[b] for a, b in pairs)
    assert found.images_per_part().tolist() == [30, 30, 0]


def test_groups_of_keys_and_patterns(tmp_path: Path) -> None:
    content = make_content({"p1_a.jpg": [], "p1_b.jpg": [], "p2_a.jpg": []})
    for image, patient in zip(content["images"], ("x", "y", "x"), strict=True):
        image["patient"] = patient
    found = make_document(tmp_path, content)
    by_key = split.group_by_key(found, "patient")
    assert by_key[0] == by_key[2] != by_key[1]
    by_name = split.group_by_pattern(found, r"^p(\d)_")
    assert by_name[0] == by_name[1] != by_name[2]
    whole = split.group_by_pattern(found, r"_[ab]")
    assert whole[0] == whole[2] != whole[1]


@pytest.mark.parametrize("value", [None, [1], {"a": 1}], ids=str)
def test_missing_key_is_refused(tmp_path: Path, value: Any) -> None:
    content = make_content({"a.jpg": [], "b.jpg": []})
    content["images"][0]["video_id"] = 1
    if value is not None:
        content["images"][1]["video_id"] = value
    with pytest.raises(UserError, match=r"image b\.jpg: video_id: expected a text or a number"):
        split.group_by_key(make_document(tmp_path, content), "video_id")


def test_names_without_a_match_are_refused(document: CocoDocument) -> None:
    with pytest.raises(UserError, match=r"in 48 of 60: v1/001\.jpg, v2/002\.jpg"):
        split.group_by_pattern(document, "^v0")
    with pytest.raises(UserError, match="--group-regex: expected a regular expression"):
        split.group_by_pattern(document, "(")


def test_equal_images_are_found_and_refused(tmp_path: Path) -> None:
    found = make_document(
        tmp_path, make_content({"a.jpg": [], "./a.jpg": [], "b.jpg": [], "c.jpg": [], "d.jpg": []})
    )
    assert split.duplicates(found, None) == [[0, 1]]
    same = split.duplicates(found, [b"x", b"y", b"", b"z", b"z"])
    assert same == [[0, 1], [3, 4]]
    apart = [str(row) for row in range(5)]
    with pytest.raises(UserError, match=r"2 sets of equal images .*a\.jpg = \./a\.jpg, c\.jpg"):
        split.refuse_leakage(found, apart, same)
    split.refuse_leakage(found, ["0", "0", "1", "2", "2"], same)


@pytest.mark.parametrize(
    ("fractions", "count", "sizes"),
    [
        ([0.8, 0.1, 0.1], 10, [8, 1, 1]),
        ([0.5, 0.5], 3, [2, 1]),
        ([0.333, 0.333, 0.333], 10, [4, 3, 3]),
        ([0.7, 0.2, 0.1], 128, [90, 25, 13]),
    ],
)
def test_fractions_become_sizes(fractions: list[float], count: int, sizes: list[int]) -> None:
    assert sizes_of_fractions(fractions, count).tolist() == sizes


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([0.8, 0.1], "0.8 0.1, whose sum is 0.9"),
        ([1.0, 0.0], "expected numbers above 0"),
        ([1.5, -0.5], "expected numbers above 0"),
        ([float("nan"), 0.5], "expected numbers above 0"),
        ([0.98, 0.01, 0.01], "expected an image in each part"),
    ],
)
def test_impossible_fractions_are_refused(fractions: Sequence[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sizes_of_fractions(fractions, 10)


def test_impossible_counts_and_groups_are_refused(document: CocoDocument) -> None:
    with pytest.raises(UserError, match=r"expected at most 60 images in all.*got 61"):
        split_images(document, np.array([60, 1]), NAMES[:2])
    with pytest.raises(UserError, match="at least one image"):
        split.sizes_of_counts([5, 0])
    with pytest.raises(UserError, match="has 60 of 60 images, more than the largest part"):
        divide(document, 0.8, 0.2, groups=["g"] * 60)
    with pytest.raises(UserError, match="got an empty part: the 2 groups"):
        divide(document, 0.6, 0.2, 0.2, groups=["a"] * 30 + ["b"] * 30)


def test_missing_classes_are_told(tmp_path: Path) -> None:
    found = make_document(tmp_path, make_content({"a": ["cat"], "b": ["cat"], "c": ["dog"]}))
    divided = split_images(found, np.array([2, 1]), ("train", "val"))
    missing = split.missing_classes(divided)
    assert "owl" not in str(missing)  # the whole file lacks it
    assert missing


@pytest.mark.parametrize(
    ("name", "fractions"),
    [
        ("coco128/annotations/instances_train2017.json", (0.8, 0.1, 0.1)),
        ("bccd/annotations/train.json", (0.8, 0.1, 0.1)),
        ("bccd/annotations/train.json", (0.7, 0.3)),
    ],
)
def test_shares_of_classes_on_real_data(
    data_dir: Path, name: str, fractions: tuple[float, ...]
) -> None:
    document = read_document(data_dir / name)
    divided = divide(document, *fractions)
    objects = divided.objects_per_part()[:, : len(fractions)]
    totals = objects.sum(axis=1)
    # of whole images: 143.5 of 205 are 144
    shares = divided.images_per_part()[: len(fractions)] / len(document.file_names)
    np.testing.assert_allclose(shares, fractions, atol=0.01)
    wanted = np.outer(totals, shares)
    # The number of images with a class is a limit for what any division can do: an image is not
    # divided, so a part's count is off by up to the largest count in an image.
    largest = np.zeros(len(totals))
    rows = document.image_rows * len(totals) + document.labels
    codes, counts = np.unique(rows, return_counts=True)
    np.maximum.at(largest, codes % len(totals), counts)
    assert (np.abs(objects - wanted) <= np.maximum(largest, 1)[:, None]).all()
    overall = objects.sum(axis=0) / totals.sum()
    np.testing.assert_allclose(overall, shares, atol=0.05)
    frequent = totals >= 200  # shares of classes with hundreds of objects are nearly exact
    np.testing.assert_allclose(
        (objects[frequent].T / totals[frequent]).T,
        np.tile(shares, (frequent.sum(), 1)),
        atol=0.03,
    )
    # and far better than chance
    rng = np.random.default_rng(0)
    chance = []
    for _ in range(20):
        parts = rng.permutation(divided.parts)[document.image_rows]
        counted = [
            np.bincount(document.labels[parts == p], minlength=len(totals))
            for p in range(len(fractions))
        ]
        chance.append(np.abs(np.stack(counted, 1) - wanted).sum())
    assert np.abs(objects - wanted).sum() < 0.8 * min(chance)


def test_merged_parts_are_the_whole(tmp_path: Path, data_dir: Path) -> None:
    document = read_document(data_dir / "bccd" / "annotations" / "train.json")
    divided = divide(document, 0.6, 0.2, 0.2)
    parts = [make_document(tmp_path, divided.content_of(part), f"{part}.json") for part in range(3)]
    merged = merge(parts)
    assert not merged.notes
    assert by_name(merged.content) == by_name(document.content)
    assert {k: v for k, v in merged.content.items() if not isinstance(v, list)} == {
        k: v for k, v in document.content.items() if not isinstance(v, list)
    }


def by_name(content: Any) -> dict[str, Any]:
    """Return the images with their objects, by file name, and the classes, without numbers."""
    classes = {each["id"]: each["name"] for each in content["categories"]}
    found: dict[int, tuple[Any, list[str]]] = {
        each["id"]: ({**each, "id": 0}, []) for each in content["images"]
    }
    for each in content["annotations"]:
        numberless = {**each, "id": 0, "image_id": 0, "category_id": classes[each["category_id"]]}
        found[each["image_id"]][1].append(json.dumps(numberless, sort_keys=True))
    images = {
        image["file_name"]: (json.dumps(image, sort_keys=True), sorted(objects))
        for image, objects in found.values()
    }
    return {"images": images, "classes": sorted(classes.values())}
