import gc
from pathlib import Path

import pytest

from detection.data.coco import read_coco
from engine.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"images": [],\n "x" 3}', "not valid JSON: line 2, column 6: Expecting ':' delimiter"),
        (b"", "not valid JSON: line 1, column 1: Expecting value"),
        (b"\xff\xfe\x00", "not valid JSON: not UTF-8 text"),
        (b"[1%s]" % (b"0" * 5000), "not valid JSON: a number with too many digits"),
        (b"[" * 100_000, "not valid JSON: lists or objects nested too deep"),
        (b"[]", "expected a COCO object with images, annotations, categories, got a list"),
    ],
    ids=["syntax", "empty", "binary", "digits", "depth", "list"],
)
def test_text_that_is_no_coco(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "coco.json"
    path.write_bytes(text)
    with pytest.raises(UserError) as error:
        read_coco(path)
    assert str(error.value) == f"{path}: {expected}"


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(UserError, match="expected a file, got a folder"):
        read_coco(tmp_path)


def test_the_garbage_collector_is_left_as_it_was(tmp_path: Path) -> None:
    assert gc.isenabled()
    with pytest.raises(UserError):
        read_coco(tmp_path / "none.json")
    assert gc.isenabled()
