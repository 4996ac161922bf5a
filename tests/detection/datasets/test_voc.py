"""PASCAL VOC's layout: image sets by list and by folder, error messages."""

from collections.abc import Callable
from pathlib import Path

import pytest

from detection.datasets.voc import (
    VOC_CLASSES,
    Category,
    ImageSet,
    find_sets,
    number_classes,
    read_names,
)
from engine.errors import UserError
from tests.detection.datasets.voc_files import write_voc, write_xml


def test_twenty_classes_in_alphabetical_order() -> None:
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert number_classes(VOC_CLASSES)["tvmonitor"] == Category(20, "tvmonitor")


def test_sets_of_several_years(tmp_path: Path) -> None:
    write_voc(tmp_path, "VOC2007", {"trainval": "000001 000002", "test": "000003"})
    write_voc(tmp_path, "VOC2012", {"trainval": "2008_000001"})
    assert find_sets(tmp_path, ["VOC2007/trainval", "VOC2012/trainval"]) == [
        ImageSet("VOC2007/Annotations", "VOC2007/JPEGImages", ("000001", "000002")),
        ImageSet("VOC2012/Annotations", "VOC2012/JPEGImages", ("2008_000001",)),
    ]
    year = tmp_path / "VOC2007"
    assert find_sets(year, ["test"]) == [ImageSet("Annotations", "JPEGImages", ("000003",))]


def test_plain_folders(tmp_path: Path) -> None:
    for name in ("b", "a.1", "more/c"):
        write_xml(tmp_path / "xml" / f"{name}.xml", [])
    names = ("a.1", "b", "more/c")
    assert find_sets(tmp_path, [], xml="xml") == [ImageSet("xml", "xml", names)]
    assert find_sets(tmp_path, [], xml="xml", images=".") == [ImageSet("xml", ".", names)]
    (tmp_path / "list.txt").write_text("b\n")
    found = find_sets(tmp_path, [], xml="xml", names=tmp_path / "list.txt")
    assert found == [ImageSet("xml", "xml", ("b",))]


def test_linked_folders_are_read_once_and_hidden_files_skipped(tmp_path: Path) -> None:
    for name in ("a", "more/b", "more/._b"):
        write_xml(tmp_path / f"{name}.xml", [])
    (tmp_path / "more" / "up").symlink_to(tmp_path)
    assert find_sets(tmp_path, [], xml=".")[0].names == ("a", "more/b")


def test_leading_slash_is_relative_to_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("/a\n//more/b\n")
    assert read_names(path) == ("a", "more/b")


def test_lists_with_numbers_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa 1\r\n\r\nb -1\r\n")
    assert read_names(path) == ("a", "b")


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (
        lambda root: find_sets(root, ["VOC2007/train"]),
        r"Main/train\.txt: no such file",
    ),
    "neither": (lambda root: find_sets(root, []), "expected either --sets or --xml"),
    "both": (lambda root: find_sets(root, ["a"], xml="b"), "expected either --sets or --xml"),
    "images of a set": (
        lambda root: find_sets(root, ["a"], images="b"),
        "expected --images and --list with --xml, got --sets",
    ),
    "no XML": (lambda root: find_sets(root, [], xml="xml"), "xml: expected XML files, got none"),
    "empty": (
        lambda root: read_names(root / "empty.txt"),
        r"empty\.txt: .* one line",
    ),
    "encoding": (lambda root: read_names(root / "latin.txt"), r"latin\.txt: expected UTF-8 text"),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(
    tmp_path: Path, call: Callable[[Path], object], message: str
) -> None:
    write_voc(tmp_path, "VOC2007", {"test": "000003"})
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4")
    with pytest.raises(UserError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)
