"""Files as other tools write them, and files that hardly are COCO files."""

import json
from pathlib import Path
from typing import Any

import pytest

from detection.data.coco import read_coco
from detection.datasets.check.document import read_document
from engine.errors import UserError
from tests.detection.datasets.check.checking import findings_of, repair, report_of, write

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
OBJECT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1.0, 2.0, 10.0, 12.0]}
CLASS = {"id": 1, "name": "ant"}
ODD: dict[str, tuple[Any, set[str]]] = {
    "nothing": ({}, {"missing-list", "no-training-object"}),
    "empty lists": (
        {"images": [], "annotations": [], "categories": []},
        {"no-images", "no-categories", "no-training-object"},
    ),
    "no annotations key": (
        {"images": [IMAGE], "categories": [CLASS]},
        {"no-annotations-key", "images-empty"},
    ),
    "empty annotations": (
        {"images": [IMAGE], "annotations": [], "categories": [CLASS]},
        {"no-training-object", "images-empty"},
    ),
    "other types": (
        {"images": {"1": IMAGE}, "annotations": "none", "categories": None},
        {"missing-list", "no-training-object"},
    ),
    "annotations alone": (
        {"images": [], "annotations": [OBJECT], "categories": []},
        {
            *("no-images", "no-categories", "no-training-object"),
            *("unknown-image", "unknown-category", "area-missing", "iscrowd-missing"),
        },
    ),
    "names in place of entries": (
        {"images": ["a.jpg"], "annotations": [None], "categories": ["ant"]},
        {
            "image-not-object",
            "annotation-not-object",
            "category-not-object",
            "no-training-object",
        },
    ),
}


@pytest.mark.parametrize(("document", "codes"), ODD.values(), ids=ODD)
def test_odd_files(tmp_path: Path, document: Any, codes: set[str]) -> None:
    path = write(tmp_path / "a.json", document)
    assert set(findings_of(path)) == codes
    repair(path, tmp_path / "b.json")
    json.loads((tmp_path / "b.json").read_text())


def test_strings_everywhere(tmp_path: Path) -> None:
    """As spreadsheets and hand-written scripts export it."""
    document = {
        "images": [{**IMAGE, "id": "a.jpg"}, {**IMAGE, "id": "7", "file_name": "b.jpg"}],
        "annotations": [
            {**OBJECT, "id": "1", "image_id": "a.jpg", "category_id": "1"},
            {**OBJECT, "id": "2", "image_id": "7", "bbox": ["1", "2", "10", "12"], "area": "9"},
            {**OBJECT, "id": None, "image_id": 7.0, "iscrowd": "0"},
        ],
        "categories": [{**CLASS, "id": "1"}],
    }
    report, _ = repair(write(tmp_path / "a.json", document), tmp_path / "b.json")
    counts = {finding.code: finding.count for finding in report.findings}
    assert counts["annotation-id"] == 3
    assert counts["annotation-image-id"] == 3
    assert (counts["box-malformed"], counts["area-malformed"], counts["flag-malformed"]) == (
        1,
        1,
        1,
    )
    copy = json.loads((tmp_path / "b.json").read_text())
    assert [image["id"] for image in copy["images"]] == [8, 7]
    # the third is then like the second, and dropped
    assert [entry["image_id"] for entry in copy["annotations"]] == [8, 7]
    assert copy["annotations"][1]["bbox"] == [1, 2, 10, 12]
    assert len(read_coco(tmp_path / "b.json").boxes) == 2


@pytest.mark.parametrize("number", ["NaN", "1e999", "Infinity"])
def test_numbers_that_json_does_not_have(tmp_path: Path, number: str) -> None:
    text = json.dumps({"images": [IMAGE], "annotations": [OBJECT] * 2, "categories": [CLASS]})
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("10.0", number, 1).encode())
    found = findings_of(path)
    assert found["box-not-finite"].rows.tolist() == [0]
    repair(path, tmp_path / "b.json")
    assert len(read_coco(tmp_path / "b.json").boxes) == 1


def test_the_box_of_the_polygons_replaces_a_bad_one(tmp_path: Path) -> None:
    polygon = [[1, 2, 11, 2, 11, 14, 1, 14]]
    objects = [{**OBJECT, "bbox": box, "segmentation": polygon} for box in ([1, 2, 0, 0], None)]
    document: dict[str, Any] = {"images": [IMAGE], "annotations": objects, "categories": []}
    document["annotations"][1] |= {"id": 2, "category_id": 2}
    document["categories"] = [CLASS, {"id": 2, "name": "bee"}]
    repair(write(tmp_path / "a.json", document), tmp_path / "b.json")
    copy = json.loads((tmp_path / "b.json").read_text())
    assert [entry["bbox"] for entry in copy["annotations"]] == [[1, 2, 10, 12]] * 2
    assert [entry["area"] for entry in copy["annotations"]] == [120, 120]


def test_windows_line_ends_and_unicode(tmp_path: Path) -> None:
    document = {
        "images": [{**IMAGE, "file_name": "b\u00e4r\\\u56fe.jpg"}],
        "annotations": [OBJECT],
        "categories": [{**CLASS, "name": "\u0431\u044b\u043a \U0001f403"}],
    }
    text = json.dumps(document, indent=1, ensure_ascii=False).replace("\n", "\r\n")
    path = tmp_path / "a.json"
    path.write_bytes(text.encode())
    report, _ = repair(path, tmp_path / "b.json")
    assert report.counts()["error"] == 0
    copy = json.loads((tmp_path / "b.json").read_text())
    assert (copy["images"], copy["categories"]) == (document["images"], document["categories"])


def test_an_unchanged_document_is_written_as_it_was(tmp_path: Path) -> None:
    text = (
        '{"x": [1e5, null], "images": [{"id":1,  "a": 1.50}], "annotations": [], "categories":[]}'
    )
    (tmp_path / "a.json").write_text(text)
    read_document(tmp_path / "a.json").write(tmp_path / "b.json")
    copy = (tmp_path / "b.json").read_text()
    assert json.loads(copy) == json.loads(text)
    assert '{"id":1,  "a": 1.50}' in copy


def test_class_names_that_are_hardly_different(tmp_path: Path) -> None:
    names = ["Red Cell", "red_cell", "white"]
    categories = [{"id": at, "name": name} for at, name in enumerate(names)]
    document = {"images": [IMAGE], "annotations": [OBJECT], "categories": categories}
    found = findings_of(write(tmp_path / "a.json", document))
    assert str(found["class-similar-names"].examples[0]) == "'Red Cell', 'red_cell'"
    assert [str(each) for each in found["ids-from-zero"].examples] == ["categories"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "got a list"), ('[{"score": 1}]', "a results file"), ("{", "not valid JSON")],
)
def test_what_is_no_coco_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        report_of(tmp_path / "a.json")
