import hashlib
from pathlib import Path

from detection.data.image_content import content_keys
from engine.log import RunLog


def test_equal_bytes_have_equal_keys(tmp_path: Path) -> None:
    contents = {"a.jpg": b"x" * 3_000_000, "b.jpg": b"y", "c.png": b"x" * 3_000_000, "d": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    keys = content_keys([tmp_path / name for name in contents], log=RunLog(None, is_main=False))
    assert keys == [hashlib.sha256(content).hexdigest() for content in contents.values()]
    assert keys[0] == keys[2] != keys[1]


def test_what_cannot_be_read_has_no_key(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    paths = [tmp_path / "none.jpg", tmp_path, tmp_path / "a.jpg", tmp_path / ("n" * 300)]
    keys = content_keys(paths, log=RunLog(None, is_main=False))
    assert [key is None for key in keys] == [True, True, False, True]
    assert content_keys([], log=RunLog(None, is_main=False)) == []
