"""Recognition of formats, and the lists of formats."""

from pathlib import Path

import pytest

from detection.commands import data_convert
from detection.datasets.formats.tables import READERS, WRITERS, detect_format
from engine.errors import UserError
from tests.detection.datasets.formats.conversions import write_files


def test_the_command_knows_all_formats() -> None:
    assert list(data_convert.SOURCES) == list(READERS)
    assert list(data_convert.TARGETS) == list(WRITERS)


@pytest.mark.parametrize(
    ("files", "source", "expected"),
    [
        ({"data.yaml": ""}, ".", "yolo"),
        ({"obj.data": ""}, ".", "yolo"),
        ({"labels/a.txt": ""}, ".", "yolo"),
        ({"x.yaml": ""}, "x.yaml", "yolo"),
        ({"a/b.xml": "\ufeff<annotation/>"}, ".", "voc"),
        ({"annotations.xml": "<annotations/>"}, ".", "cvat"),
        ({"x.xml": "<annotations/>"}, "x.xml", "cvat"),
        ({"x.json": '{"images": [], "categories": []}'}, "x.json", "coco"),
        ({"t/_annotations.coco.json": "{}"}, ".", "roboflow"),
        ({"t/_annotations.csv": ""}, ".", "csv"),
        ({"a.json": '{"shapes": [], "imagePath": "a.jpg"}'}, ".", "labelme"),
        ({"x.json": '{"_via_img_metadata": {}}'}, "x.json", "via"),
        ({"x.json": '{"a1": {"filename": "a", "regions": []}}'}, "x.json", "via"),
        ({"x.json": '[{"data": {"image": "a"}, "annotations": []}]'}, "x.json", "label-studio"),
        ({"x.json": '[{"image": "a", "label": [{"x": 1}]}]'}, "x.json", "label-studio"),
        ({"x.csv": "filename,region_shape_attributes\n"}, "x.csv", "via"),
        ({"x.csv": "a.jpg;1;2;3;4;cat\n"}, "x.csv", "csv"),
        ({"a.png": ""}, ".", "masks"),
        ({"instances.json": "{}", "a.png": ""}, ".", "masks"),
    ],
)
def test_detection(tmp_path: Path, files: dict[str, str], source: str, expected: str) -> None:
    write_files(tmp_path, files)
    assert detect_format(tmp_path / source)[0] == expected


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, ".", "expected annotations of a known format, got none"),
        ({"a.xml": "<x/>"}, ".", "expected <annotation> or <annotations>, got <x>"),
        ({"a.xml": "<annotation/>", "b.csv": "a,b"}, ".", "expected one kind of file"),
        ({"x.json": '{"a": 1}'}, "x.json", "expected JSON of a known format, got other keys"),
        ({"x.json": "[]"}, "x.json", "expected JSON of a known format, got an empty list"),
        ({"x.txt": "hello"}, "x.txt", "got another file; --from names it"),
        ({"x.txt": "\ufeff \r\n"}, "x.txt", "expected annotations, got an empty file"),
        ({}, "absent", "no such file or folder"),
    ],
)
def test_unknown(tmp_path: Path, files: dict[str, str], source: str, message: str) -> None:
    write_files(tmp_path, files)
    with pytest.raises(UserError, match=message):
        detect_format(tmp_path / source)
