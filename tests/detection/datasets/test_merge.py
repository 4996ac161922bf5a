import copy
from pathlib import Path
from typing import Any

import pytest

from detection.datasets.merge import Source, merge
from engine.errors import UserError
from tests.detection.datasets.coco_files import make_content, make_document


def merged(folder: Path, *contents: dict[str, Any], **options: Any) -> Any:
    documents = [
        make_document(folder, content, f"{place}.json") for place, content in enumerate(contents)
    ]
    before = copy.deepcopy([document.content for document in documents])
    found = merge(documents, **options)
    assert [document.content for document in documents] == before
    return found


def classes_by_name(content: Any) -> dict[str, list[str]]:
    """Return the classes of the objects of each file name."""
    names = {each["id"]: each["name"] for each in content["categories"]}
    images = {each["id"]: each["file_name"] for each in content["images"]}
    found: dict[str, list[str]] = {name: [] for name in images.values()}
    for each in content["annotations"]:
        found[images[each["image_id"]]].append(names[each["category_id"]])
    return found


def test_ids_are_renumbered_and_classes_joined_by_name(tmp_path: Path) -> None:
    first = make_content({"a.jpg": ["dog", "owl"]})
    second = make_content({"b.jpg": ["cat"], "c.jpg": ["dog", "dog"]})
    # other ids for the same names, and a class of its own whose id is taken
    second["categories"] = [
        {"id": 1, "name": "dog", "supercategory": "pet"},
        {"id": 3, "name": "cat"},
        {"id": 5, "name": "yak"},
    ]
    for each in second["annotations"]:
        each["category_id"] = {1: 3, 3: 1}[each["category_id"]]
    found = merged(tmp_path, first, second)
    content = found.content
    assert [each["id"] for each in content["images"]] == [1, 2, 3]
    assert [each["id"] for each in content["annotations"]] == [1, 2, 3, 4, 5]
    assert [(each["id"], each["name"]) for each in content["categories"]] == [
        *((1, "cat"), (3, "dog"), (5, "owl"), (6, "yak"))
    ]
    assert content["categories"][1]["supercategory"] == "pet"
    assert classes_by_name(content) == {
        "a.jpg": ["dog", "owl"],
        "b.jpg": ["cat"],
        "c.jpg": ["dog", "dog"],
    }
    assert found.sources == (Source(1, 2, 3, 0, 0, 0), Source(2, 3, 1, 0, 0, 0))
    assert found.notes == ()


def test_other_keys_survive(tmp_path: Path) -> None:
    first = make_content({"a.jpg": ["dog"]}, info={"year": 1}, mine=[1, 2], only="x")
    first["images"][0] |= {"license": 1, "weather": "rain"}
    first["annotations"][0] |= {"attributes": {"a": None}}
    first["licenses"] = [{"id": 1, "name": "MIT"}]
    second = make_content({"b.jpg": ["dog"], "c.jpg": []}, info={"year": 2}, mine=[2, 3], new={})
    second["licenses"] = [{"id": 1, "name": "BSD"}, {"id": 2, "name": "GPL"}]
    for image, number in zip(second["images"], (1, 2), strict=True):
        image["license"] = number
    found = merged(tmp_path, first, second)
    content = found.content
    assert (content["mine"], content["only"], content["new"]) == ([1, 2, 3], "x", {})
    assert content["info"] == {"year": 1}
    assert content["images"][0]["weather"] == "rain"
    assert content["annotations"][0]["attributes"] == {"a": None}
    licenses = {each["id"]: each["name"] for each in content["licenses"]}
    assert [licenses[each["license"]] for each in content["images"]] == ["MIT", "BSD", "GPL"]
    assert any("info differs; the first file's is kept" in note for note in found.notes)
    assert any("licenses: 1 ids were taken" in note for note in found.notes)


def test_renumbered_entries_do_not_collide_with_later_ones(tmp_path: Path) -> None:
    """The new id of one entry may be the old id of the next."""
    first = make_content({"a.jpg": []}, licenses=[{"id": 1, "name": "A"}])
    second = make_content({"b.jpg": [], "c.jpg": []})
    second["licenses"] = [{"id": 1, "name": "B"}, {"id": 2, "name": "C"}]
    second["images"][0]["license"], second["images"][1]["license"] = 1, 2
    content = merged(tmp_path, first, second).content
    licenses = {each["id"]: each["name"] for each in content["licenses"]}
    assert len(licenses) == len(content["licenses"]) == 3
    assert [licenses[each["license"]] for each in content["images"][1:]] == ["B", "C"]


def test_ambiguous_references_are_refused(tmp_path: Path) -> None:
    contents = [
        make_content({f"{name}.jpg": []}, tracks=[{"id": 1, "name": name}]) for name in ("a", "b")
    ]
    with pytest.raises(UserError, match=r"1\.json: tracks: id 1 is another entry"):
        merged(tmp_path, *contents)


def test_same_image_is_refused_or_renamed(tmp_path: Path) -> None:
    contents = make_content({"a.jpg": ["dog"], "b.jpg": []}), make_content({"./a.jpg": ["owl"]})
    with pytest.raises(UserError, match=r"1\.json: 1 file names are also in .*0\.json: \./a\.jpg"):
        merged(tmp_path, *contents)
    found = merged(tmp_path, *contents, prefixes=["", "x/y/"])
    assert [each["file_name"] for each in found.content["images"]] == [
        *("a.jpg", "b.jpg", "x/y/./a.jpg")
    ]


def test_same_image_is_dropped_or_joined(tmp_path: Path) -> None:
    first = make_content({"a.jpg": ["dog"], "b.jpg": []})
    second = make_content({"a.jpg": ["owl", "cat"], "c.jpg": ["cat"]})
    found = merged(tmp_path, first, second, on_same_image="keep-first")
    assert classes_by_name(found.content) == {"a.jpg": ["dog"], "b.jpg": [], "c.jpg": ["cat"]}
    assert found.sources[1] == Source(1, 1, 0, 0, 1, 2)
    found = merged(tmp_path, first, second, on_same_image="join")
    assert classes_by_name(found.content)["a.jpg"] == ["dog", "owl", "cat"]
    assert found.sources[1] == Source(1, 3, 0, 1, 0, 0)
    second["images"][0]["width"] = 81
    with pytest.raises(UserError, match=r"image a\.jpg: expected 80x60 .* got 81x60"):
        merged(tmp_path, first, second, on_same_image="join")


def test_image_twice_in_one_file_is_kept(tmp_path: Path) -> None:
    twice = make_content({"a.jpg": ["dog"], "./a.jpg": ["owl"]})
    found = merged(tmp_path, twice, make_content({"b.jpg": []}))
    assert len(found.content["images"]) == 3


def test_classes_that_differ_are_told(tmp_path: Path) -> None:
    contents = [make_content({f"{name}.jpg": []}) for name in ("a", "b")]
    for content, above in zip(contents, ("pet", "animal"), strict=True):
        content["categories"][0]["supercategory"] = above
    found = merged(tmp_path, *contents)
    assert found.content["categories"][0]["supercategory"] == "pet"
    assert found.notes[0].endswith(
        "class cat: supercategory differs from an earlier file's; the first is kept"
    )
