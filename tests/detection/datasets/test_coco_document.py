import json
from pathlib import Path
from typing import Any

import pytest

from detection.datasets.coco_document import plain_path, prepare_outputs, write_document
from engine.errors import UserError
from engine.paths import names_in
from tests.detection.datasets.coco_files import make_content, make_document


def test_entries_refer_to_each_other(tmp_path: Path) -> None:
    found = make_document(
        tmp_path, make_content({"a.jpg": ["dog"], "b.jpg": [], "c.jpg": ["owl", "cat"]})
    )
    assert found.file_names == ("a.jpg", "b.jpg", "c.jpg")
    assert found.class_names == ("cat", "dog", "owl")
    assert found.category_ids == (1, 3, 5)
    assert found.image_rows.tolist() == [0, 2, 2]
    assert found.labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, r"annotations\[0\]: image_id: no image has the id 7"),
        ({"category_id": 2}, r"annotations\[0\]: category_id: no category has the id 2"),
        ({"image_id": "10"}, "image_id: expected an integer, got '10'"),
    ],
)
def test_dangling_references_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = make_content({"a.jpg": ["dog"]})
    content["annotations"][0] |= change
    with pytest.raises(UserError, match=message):
        make_document(tmp_path, content)


def test_document_is_written_as_it_is(tmp_path: Path) -> None:
    content = make_content(
        {"ä 日本.jpg": ["dog"]},
        info={"version": 1e-7, "half": "\ud800", "nan": None, "long": 2**70},
    )
    write_document(tmp_path / "b.json", content)
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8")) == content


def test_user_files_are_never_outputs(tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    source.write_text("{}")
    (tmp_path / "link.json").symlink_to(source)
    for path in (source, tmp_path / "link.json", tmp_path / "new" / ".." / "a.json"):
        with pytest.raises(UserError, match="got the input itself"):
            prepare_outputs([path], [source], force=True)
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(UserError, match="--force replaces it"):
        prepare_outputs([other], [source], force=False)
    prepare_outputs([other, tmp_path / "x" / "y" / "z.json"], [source], force=True)
    assert names_in(tmp_path / "x") == ["y"]
    assert source.read_text() == other.read_text() == "{}"


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a.jpg", "a.jpg"), ("./a//b.jpg", "a/b.jpg"), ("/a\\b.jpg", "a/b.jpg"), ("a/../b", "b")],
)
def test_file_names_have_one_spelling(name: str, plain: str) -> None:
    assert plain_path(name) == plain
