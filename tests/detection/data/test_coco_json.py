import gc
import gzip
from pathlib import Path

import pytest

from detection.data.coco import read_coco
from engine.errors import UserError

NO_COCO = "expected a COCO object with images, annotations, categories"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"images": [],\n "x" 3}', "not valid JSON: line 2, column 6: Expecting ':' delimiter"),
        (b"", "not valid JSON: the file is empty"),
        (
            b"\xff\xfe\x00",
            "not valid JSON: expected UTF-8 text, got UTF-16; save it as UTF-8",
        ),
        (
            gzip.compress(b"{}"),
            "not valid JSON: expected UTF-8 text, got a gzip archive; unpack it first",
        ),
        (b'{"images": null}', "images: expected a list, got null"),
        (b'{"images": {}}', "images: expected a list, got an object"),
        (b'"text"', f"{NO_COCO}, got a string"),
        (b"[1%s]" % (b"0" * 5000), "not valid JSON: a number with too many digits"),
        (b"[" * 100_000, "not valid JSON: lists or objects nested too deep"),
        (b"[]", f"{NO_COCO}, got a list"),
    ],
    ids=["syntax", "empty", "UTF-16", "gzip", "null", "object", "text", "digits", "depth", "list"],
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
