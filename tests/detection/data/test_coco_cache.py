import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection.data.coco import Annotations, read_coco
from detection.data.coco_cache import FORMAT, SUFFIX
from engine.errors import UserError

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]


def read(path: Path, **options: Any) -> Annotations:
    return read_coco(path, cache_from=0, on_bad_box="skip", need_boxes=False, **options)


def copy_of(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def arrays_of(value: Any) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    if not dataclasses.is_dataclass(value):
        return []
    return [a for f in dataclasses.fields(value) for a in arrays_of(getattr(value, f.name))]


def assert_same(got: Annotations, expected: Annotations) -> None:
    assert got.classes == expected.classes
    assert got.report == expected.report
    pairs = zip(arrays_of(got), arrays_of(expected), strict=True)
    for one, other in pairs:
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def awkward(document: Document) -> None:
    """Give it all that the report counts, and names that are not ASCII."""
    document["images"][0]["file_name"] = "grün/ä.png"
    document["categories"][0]["name"] = "zèbre"
    document["annotations"][0] |= {"difficult": 1, "ignore": True}
    document["annotations"][0]["segmentation"].append([1, 2, 3, 4])
    document["annotations"] += [
        {"id": 21, "image_id": 9, "category_id": 3, "bbox": [1, 1, -2, 5], "segmentation": 3},
        {"id": 23, "image_id": 9, "category_id": 7, "bbox": [float("nan"), 0, 5, 5]},
        {"id": 24, "image_id": 70, "category_id": 7, "bbox": [-1, 0, 5, 5], "iscrowd": 0},
    ]


@pytest.mark.parametrize(
    "change",
    [lambda _: None, awkward, lambda document: document.update(annotations=[])],
    ids=["plain", "awkward", "no annotation"],
)
def test_the_copy_gives_what_the_file_gives(
    document: Document, tmp_path: Path, change: Callable[[Document], None]
) -> None:
    change(document)
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    plain = read_coco(path, on_bad_box="skip", need_boxes=False)
    assert plain.cache_note is None
    assert not copy_of(path).exists()
    first, second = read(path), read(path)
    assert first.cache_note == f"cached copy {copy_of(path)} made"
    assert second.cache_note == f"read from its cached copy {copy_of(path)}"
    assert_same(first, plain)
    assert_same(second, plain)
    assert sorted(tmp_path.iterdir()) == [path, copy_of(path)]


def test_scoring_gets_the_digits_of_the_file(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"][0] |= {"segmentation": [[10.1, 20.3, 30.7, 20.3, 30.7, 40.9]]}
    document["annotations"][0] |= {"area": 150.3, "bbox": [0.1, 0.2, 10.3, 20.7]}
    path = write_coco(document)
    plain = read_coco(path, for_scoring=True)
    for _ in range(2):
        found = read(path, for_scoring=True)
        assert_same(found, plain)
        assert found.table is not None
        assert found.table.areas[0] == 150.3
        assert found.table.xywh[0].tolist() == [0.1, 0.2, 10.3, 20.7]
        [polygon] = found.segmentations.polygons(0)
        assert [polygon.tolist()] == document["annotations"][0]["segmentation"]
    training = read(path)
    assert training.table is None
    assert training.segmentations.coordinates.dtype == np.float32
    assert_same(training, read_coco(path))


def test_a_real_file_comes_back(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "coco128/annotations/instances_train2017.json"
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes())
    read(path)
    again = read(path)
    assert str(again.cache_note).startswith("read from")
    assert_same(again, read_coco(source))


def test_faults_are_told_alike_with_a_copy(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"][0]["bbox"] = [1, 2, -3, 4]
    path = write_coco(document)
    expected = f"{path}: annotation 11 of image a.png: bbox width: expected at least 0.01"
    for _ in range(2):
        with pytest.raises(UserError) as error:
            read_coco(path, cache_from=0)
        assert str(error.value).startswith(expected)
    assert copy_of(path).exists()


def test_a_wrong_file_has_no_copy(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"][0]["bbox"] = "wide"
    path = write_coco(document)
    with pytest.raises(UserError, match="annotation 11: bbox: expected four numbers"):
        read(path)
    assert not copy_of(path).exists()


@pytest.mark.parametrize("keeps_mtime", [False, True], ids=["later", "mtime set back"])
def test_an_edit_of_the_same_size_is_noticed(
    document: Document, write_coco: CocoWriter, keeps_mtime: bool
) -> None:
    path = write_coco(document)
    read(path)
    before = path.stat()
    text = path.read_text()
    path.write_text(text.replace("150.5", "150.6"))
    if keeps_mtime:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_size == before.st_size
    changed = read(path)
    assert changed.cache_note == (
        f"cached copy {copy_of(path)} made again (it was of another version of the file)"
    )
    assert changed.areas[1] == np.float32(150.6)
    assert_same(read(path), changed)


@pytest.mark.parametrize(
    "touch",
    [lambda path: os.utime(path, ns=(5, 5)), lambda path: path.chmod(0o600)],
    ids=["touch", "chmod"],
)
def test_a_touched_file_keeps_its_copy(
    document: Document, write_coco: CocoWriter, touch: Callable[[Path], None]
) -> None:
    path = write_coco(document)
    found = read(path)
    touch(path)
    note = f"read from its cached copy {copy_of(path)}"
    for expected in (f"{note}, updated with the file's new times", note):
        again = read(path)
        assert again.cache_note == expected
        assert_same(again, found)


def test_a_moved_file_whose_copy_cannot_be_renewed(
    document: Document, write_coco: CocoWriter
) -> None:
    path = write_coco(document)
    found = read(path)
    moved = path.with_name("x" * 240)  # the copy's name fits, not that of its half-written file
    copy_of(path).rename(copy_of(moved))
    path.rename(moved)
    note = f"read from its cached copy {copy_of(moved)}, hashed at every start"
    for _ in range(2):
        again = read(moved)
        assert again.cache_note == (
            f"{note} because its new times cannot be saved: {copy_of(moved)}: cannot be written: "
            "File name too long"
        )
        assert_same(again, found)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip_last_bit,
        lambda content: content.replace(b"zebra", b"zebrb"),
        lambda content: content.replace(b'unreadable_masks\\": 0', b'unreadable_masks\\": 3'),
        lambda content: content.replace(b'"dtype":"F64"', b'"dtype":"I64"'),
        lambda _: b"",
        lambda _: b"x" * 500,
    ],
    ids=["cut", "one bit", "class name", "count", "dtype", "empty", "something else"],
)
def test_a_damaged_copy_is_made_anew(
    document: Document, write_coco: CocoWriter, damage: Callable[[bytes], bytes]
) -> None:
    path = write_coco(document)
    first = read(path)
    copy = copy_of(path)
    whole = copy.read_bytes()
    copy.unlink()  # `first` may look at its pages still
    copy.write_bytes(damage(whole))
    again = read(path)
    assert again.cache_note == f"cached copy {copy} made again (it was damaged)"
    assert_same(again, first)
    assert str(read(path).cache_note).startswith("read from")


def test_another_format_is_made_anew(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    read(path)
    copy = copy_of(path)
    content = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(content.replace(f'"format":"{FORMAT}"'.encode(), b'"format":"0"'))
    assert "of another version" in str(read(path).cache_note)


def test_a_copy_that_cannot_be_written_is_said(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    copy_of(path).mkdir()  # in its place, whoever runs the test
    (copy_of(path) / "of somebody").touch()
    found = read(path)
    note = "parsed at every start, because the cached copy cannot be kept"
    assert str(found.cache_note).startswith(f"{note}: {copy_of(path)}: cannot be written: ")
    assert_same(found, read_coco(path))
    assert [entry.name for entry in copy_of(path).iterdir()] == ["of somebody"]
    assert not list(path.parent.glob("*.partial"))


def test_small_files_and_missing_ones_have_none(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    assert read_coco(path, cache_from=path.stat().st_size + 1).cache_note is None
    assert not copy_of(path).exists()
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        read(path.with_name("none.json"))
    with pytest.raises(UserError, match="expected a file, got a folder"):
        read(path.parent)


def test_what_the_checks_alone_need_is_let_go(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    read(path)
    found = read(path)
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(copy_of(path).name) == 1
    assert found.segmentations.polygons(0)[0][0] == 2


def test_what_a_kill_left_is_removed(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    old, new = (path.with_name(f"{copy_of(path).name}.{end}.partial") for end in ("0a", "0b"))
    for left in (old, new):
        left.write_bytes(b"half of it")
    os.utime(old, (0, 0))
    read(path)
    assert copy_of(path).exists()
    assert not old.exists()
    assert new.exists()
