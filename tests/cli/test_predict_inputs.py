"""The images that the predict command finds: files, folders, and a list on standard input."""

import io
import json
import os
from pathlib import Path

import pytest

from detection.commands import predict
from detection.commands.predict_inputs import STDIN, find_images
from engine.errors import UserError
from tests.cli.conftest import Call


def list_images(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Put bytes on standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_images_are_found_in_folders(tmp_path: Path) -> None:
    files = ("b.PNG", "a.jpg", "._a.jpg", "notes.txt", "deep/c.webp", "deep/x.json", "out/a.jpg")
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    inputs = [tmp_path, tmp_path / "notes.txt"]
    found = find_images([*inputs, tmp_path / "absent.jpg"], skip_folder=tmp_path / "out")
    names = [Path(path).relative_to(tmp_path).as_posix() for path in found.paths]
    assert names == ["a.jpg", "b.PNG", "deep/c.webp", "notes.txt"]
    assert found.num_others == 2
    assert found.problems == [f"{tmp_path / 'absent.jpg'}: no such image or folder"]
    with pytest.raises(UserError, match=r"expected images \(.*\) apart from .*, got none"):
        find_images([tmp_path / "out"], skip_folder=tmp_path / "out")
    with pytest.raises(UserError, match="no such image or folder"):
        find_images([tmp_path / "absent.jpg"], skip_folder=tmp_path / "out")
    with pytest.raises(
        UserError, match=r"^https://a.org/b.jpg: expected a path; URLs are not read"
    ):
        find_images([Path("https://a.org/b.jpg")], skip_folder=tmp_path / "out")


def test_repeated_images_are_dropped_and_counted(
    site: Path,
    trained: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (site / "link").symlink_to("data")
    (site / "x").symlink_to("x")
    (site / "data" / "same.jpg").symlink_to("0.jpg")  # another name is another image
    list_images(monkeypatch, b"data/../data/1.jpg\nx/0.jpg\nx/0.jpg\n")
    inputs = ("./data/1.jpg", "data", "link", site / "data" / "2.jpg", "-")
    options = ("--device", "cpu", "--output", "out", "--skip-bad", "--format", "coco-annotations")
    outcome = call(predict, trained, *inputs, *options)
    assert outcome.code == 0, outcome.err
    assert "\nimages given more than once: 8 dropped\n" in f"\n{outcome.out}"
    images = json.loads((site / "out" / "annotations.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["1.jpg", "0.jpg", "2.jpg", "same.jpg"]


def test_images_beside_the_labels_that_are_written(site: Path, trained: Path, call: Call) -> None:
    (site / "set").mkdir()
    (site / "data").rename("set/images")
    options = ("--device", "cpu", "--output", "set", "--format", "yolo", "--no-drawings")
    outcome = call(predict, trained, "set/images", *options)
    assert outcome.code == 0, outcome.err
    names = {f"{number}.txt" for number in range(3)}
    assert {path.name for path in (site / "set" / "labels").iterdir()} == names


def test_folders_and_links_that_cannot_be_read_cost_no_other_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").touch()
    (folder / "sub" / "b.png").touch()
    (folder / "sub" / "loop").symlink_to("..")
    (folder / "x").symlink_to("x")
    deep = folder
    while len(str(deep)) < 4000:  # a path of over 4096 bytes cannot be read, even by root
        deep /= "d" * 200
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    Path("e" * 200).mkdir()
    found = find_images([folder, tmp_path / "in" / "a.png"], skip_folder=tmp_path / "out")
    assert found.paths[:2] == [str(folder / "a.png"), str(folder / "sub" / "b.png")]
    assert sorted(found.problems) == [
        f"{deep}/{'e' * 200}/: cannot be read: File name too long",
        f"{folder}/x: cannot be read: Too many levels of symbolic links",
    ]
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        find_images([deep], skip_folder=tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        (b"b.jpg\n\na b.jpg\r\n./c.jpg", ["b.jpg", "a b.jpg", "./c.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", ["a\nb.jpg", "c.jpg"]),
        (b"\xb9.jpg\n", [os.fsdecode(b"\xb9.jpg")]),
        (b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n", ["a.jpg", "b.jpg"]),
    ],
    ids=["lines", "NUL", "not UTF-8", "byte order mark"],
)
def test_lists_on_standard_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes, paths: list[str]
) -> None:
    list_images(monkeypatch, data)
    (tmp_path / "x.jpg").touch()
    found = find_images([tmp_path / "x.jpg", STDIN], skip_folder=tmp_path / "out")
    assert found.paths == [str(tmp_path / "x.jpg"), *paths]


def test_an_empty_list_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    list_images(monkeypatch, b"\n \n")
    with pytest.raises(UserError, match=r"^-: expected paths of images on standard input, .*none$"):
        find_images([STDIN], skip_folder=Path("out"))


def test_a_missing_image_of_a_list_is_skipped(
    site: Path, trained: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_images(monkeypatch, b"data/2.jpg\ndata/absent.jpg\ndata/0.jpg\n")
    options = ("--device", "cpu", "--output", "out", "--skip-bad")
    outcome = call(predict, trained, "-", *options)
    assert outcome.code == 0, outcome.err
    assert "skipped: data/absent.jpg: no such file" in outcome.out
    entries = json.loads((site / "out" / "detections.json").read_text())
    named = {(entry["image_id"], entry["file_name"]) for entry in entries}
    assert named == {(0, "data/2.jpg"), (2, "data/0.jpg")}
    twice = call(predict, trained, "-", "-", *options)
    assert (twice.code, twice.err.count("\n")) == (2, 1)
    assert "expected - once" in twice.err
