"""CSV: headers, delimiters and odd lines."""

from pathlib import Path

import pytest

from detection.datasets.formats.folders import read_class_list
from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, rows_of, write_files
from tests.detection.datasets.voc_files import write_image

# TensorFlow's object detection tutorials (xml_to_csv.py), and Roboflow's "TensorFlow" export
HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
ROW = ("a.jpg", "cat", [5, 6, 15, 14])


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}a.jpg,60,40,cat,5,6,20,20\n",
        f"\ufeff{HEADER}a.jpg,60,40,cat,5,6,20,20\n".replace("\n", "\r\n"),
        f"{HEADER}a.jpg,60,40,cat,5,6,20,20".replace(",", ";"),
        f"{HEADER}a.jpg,60,40,cat,5,6,20,20".replace(",", "\t"),
        'Label,X1,Y1,X2,Y2,Image,Width,Height\n"cat",5,6,20,20,a.jpg,60,40\n',
        "a.jpg,60,40,cat,5,6,20,20\n",
        "a.jpg,5,6,20,20,cat\n",  # keras-retinanet 1.0
    ],
    ids=["tf", "windows", "semicolon", "tab", "aliases", "no-header", "retinanet"],
)
def test_forms(tmp_path: Path, text: str) -> None:
    write_files(tmp_path, {"boxes.csv": text})
    write_image(tmp_path / "a.jpg")
    assert rows_of(read_checked(tmp_path / "boxes.csv", "csv")) == [ROW]


def test_images_without_objects_are_kept(tmp_path: Path) -> None:
    # keras-retinanet: "path,,,,,"
    write_files(tmp_path, {"b.csv": "a.jpg,5,6,20,20,cat\nsub dir\\b.jpg,,,,,\n"})
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "sub dir/b.jpg")
    checked = read_checked(tmp_path / "b.csv", "csv")
    assert [image.file_name for image in checked.images] == ["a.jpg", "sub dir/b.jpg"]
    assert dict(checked.rows)["images without objects"] == 1


def test_fractions_are_said(tmp_path: Path) -> None:
    write_files(tmp_path, {"b.csv": f"{HEADER}a.jpg,60,40,cat,0.5,0.5,1.0,1.0\n"})
    checked = read_checked(tmp_path / "b.csv", "csv")
    assert rows_of(checked) == [("a.jpg", "cat", [30, 20, 30, 20])]
    assert "no coordinate is above 1: they are read as fractions of the image" in checked.lines()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,60,40,cat,5,6,x,20", "line 3: expected numbers as xmin, ymin, xmax, ymax"),
        ("a.jpg,60,40,,5,6,7,20", "line 3: expected a class, got nothing"),
        (",60,40,cat,5,6,7,20", "line 3: expected a file name, got nothing"),
        ("a.jpg,61,40,cat,5,6,7,20", "line 3: expected the size of the image's first line"),
        ("a.jpg,60,40.5,cat,5,6,7,20", "line 3: expected width and height in whole pixels"),
        ("a.jpg,60,40,cat,20,6,5,20", r"line 3 \(cat\): bbox width: expected at least"),
        ("a.jpg,60,40,cat,70,6,75,20", r"line 3 \(cat\): bbox: expected a box that overlaps"),
        ("a.jpg,60,40", "line 3: expected numbers|line 3: expected a class"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    write_files(tmp_path, {"b.csv": f"{HEADER}a.jpg,60,40,cat,5,6,20,20\n{line}\n"})
    if line == "a.jpg,60,40":  # an image without objects
        assert rows_of(read_checked(tmp_path / "b.csv", "csv")) == [ROW]
        return
    with pytest.raises(UserError, match=message):
        read_checked(tmp_path / "b.csv", "csv")
    assert rows_of(read_checked(tmp_path / "b.csv", "csv", policy="skip")) == [ROW]


def test_unknown_columns(tmp_path: Path) -> None:
    # Roboflow's _classes.csv of a multi-label classification
    write_files(tmp_path, {"b.csv": "filename, cat, dog\na.jpg, 1, 0\n"})
    with pytest.raises(UserError, match="expected columns filename,"):
        read_checked(tmp_path / "b.csv", "csv")


def test_missing_sizes_need_images(tmp_path: Path) -> None:
    write_files(tmp_path, {"b.csv": "a.jpg,5,6,20,20,cat\n"})
    with pytest.raises(UserError, match=r"a\.jpg: no such file .*--images DIR is the folder"):
        read_checked(tmp_path / "b.csv", "csv")


def test_roboflow_folder(tmp_path: Path) -> None:
    row = "a_jpg.rf.0a1b.jpg,60,40,cat,5,6,20,20\n"
    write_files(
        tmp_path, {f"{split}/_annotations.csv": HEADER + row for split in ("train", "test")}
    )
    with pytest.raises(UserError, match="--split: expected one of test, train, all"):
        read_checked(tmp_path, "csv")
    rows = rows_of(read_checked(tmp_path, "csv", split="train"))
    assert rows == [("train/a_jpg.rf.0a1b.jpg", "cat", [5, 6, 15, 14])]


def test_class_files(tmp_path: Path) -> None:
    for text, expected in (
        ("dog,1\r\ncat, big,0\r\n", ["cat, big", "dog"]),  # keras-retinanet's
        ("cat, big\ndog\n", ["cat, big", "dog"]),
        ("room,1\nroom,2\n", ["room,1", "room,2"]),
        ("0\n", ["0"]),
    ):
        write_files(tmp_path, {"classes.csv": text})
        assert read_class_list(tmp_path / "classes.csv") == expected
