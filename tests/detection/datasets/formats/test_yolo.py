"""YOLO: layouts as tools write them, odd label files, and polygons."""

from pathlib import Path

import pytest

from detection.datasets.formats.document import WriteOptions
from detection.datasets.formats.shapes import polygon_area
from detection.datasets.formats.tables import WRITERS
from engine.errors import UserError
from tests.detection.datasets.formats.conversions import read_checked, rows_of, write_files
from tests.detection.datasets.voc_files import write_image

# images are 60x40
BOX = "1 0.5 0.5 0.5 0.25\n"
XYWH = [15, 15, 30, 10]
# Ultralytics 8.3, coco8.yaml
ULTRALYTICS = {
    "data.yaml": "path: .\ntrain: images/train # train images\nval: images/val\ntest: # test\n\n"
    "# Classes\nnames:\n  0: person\n  1: traffic light\n",
    "labels/train/a.txt": BOX,
    "labels/val/b.txt": BOX,
}
# Roboflow, "YOLOv8" export of 2024: paths with ../ that are not so, names as a list
ROBOFLOW = {
    "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
    "names: ['person', 'traffic light']\n\nroboflow:\n  workspace: me\n  version: 1\n",
    "train/labels/a.txt": BOX.strip(),
}
# CVAT 2.5, "YOLO 1.1"
CVAT = {
    "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
    "obj.names": "person\ntraffic light\n",
    "train.txt": "data/obj_train_data/a.jpg\n",
    "obj_train_data/a.txt": BOX,
}
# labelImg 1.8
LABELIMG = {"classes.txt": "person\ntraffic light\n", "a.txt": BOX}
# Label Studio 1.12, "YOLO"
LABEL_STUDIO = {"classes.txt": "person\ntraffic light", "notes.json": "{}", "labels/a.txt": BOX}


@pytest.mark.parametrize(
    ("files", "image", "split"),
    [
        (ULTRALYTICS, "images/train/a.jpg", "train"),
        (ROBOFLOW, "train/images/a.jpg", "train"),
        (CVAT, "obj_train_data/a.jpg", None),
        (LABELIMG, "a.jpg", None),
        (LABEL_STUDIO, "images/a.jpg", None),
        (LABEL_STUDIO, "images/a.JPG", None),
    ],
    ids=["ultralytics", "roboflow", "cvat", "labelimg", "label-studio", "uppercase"],
)
def test_layouts(tmp_path: Path, files: dict[str, str], image: str, split: str | None) -> None:
    write_files(tmp_path, files)
    write_image(tmp_path / image)
    checked = read_checked(tmp_path, "yolo", split=split)
    assert rows_of(checked) == [(image, "traffic light", XYWH)]
    assert list(checked.classes) == ["person", "traffic light"]


@pytest.mark.parametrize("files", [ULTRALYTICS, CVAT, LABEL_STUDIO])
def test_images_in_another_folder(tmp_path: Path, files: dict[str, str]) -> None:
    write_files(tmp_path / "labels only", files)
    write_image(tmp_path / "fotos/ü 1" / "a.jpg")
    write_image(tmp_path / "fotos" / "b.jpg")
    checked = read_checked(tmp_path / "labels only", "yolo", images=tmp_path / "fotos", split="all")
    assert ("ü 1/a.jpg", "traffic light", XYWH) in rows_of(checked)


def test_labels_alone_need_images(tmp_path: Path) -> None:
    write_files(tmp_path, LABEL_STUDIO)
    with pytest.raises(UserError, match=r"images: expected a folder of images.*--images DIR"):
        read_checked(tmp_path, "yolo")


def test_several_splits_need_a_choice(tmp_path: Path) -> None:
    write_files(tmp_path, ULTRALYTICS)
    with pytest.raises(UserError, match="--split: expected one of train, val, all, got nothing"):
        read_checked(tmp_path, "yolo")


def test_images_without_labels_and_labels_without_images_are_counted(tmp_path: Path) -> None:
    files = {"classes.txt": "a\nb\n", "labels/x.txt": "", "labels/extra.txt": BOX}
    write_files(tmp_path, files)
    for name in ("x", "y"):
        write_image(tmp_path / f"images/{name}.jpg")
    checked = read_checked(tmp_path, "yolo")
    assert [image.file_name for image in checked.images] == ["images/x.jpg", "images/y.jpg"]
    counts = dict(checked.rows)
    assert counts["images without objects"] == 2
    assert counts["images without a label file, kept without objects"] == 1
    assert counts["dropped, label files without an image"] == 1
    assert "dropped, label files without an image: labels/extra.txt" in checked.lines()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 2: expected a class from 0 to 1, got 2"),
        ("-1 0.5 0.5 0.1 0.1", "line 2: expected a class from 0 to 1, got -1"),
        ("cat 0.5 0.5 0.1 0.1", "line 2: expected numbers, got 'cat 0.5"),
        ("0 0.5 0.5 0.1", "line 2: expected a class and 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.9 0.9", "line 2: expected a class and 4 numbers"),
        ("0 30 20 10 10", "line 2: expected fractions of the image, 0 to 1, got 30"),
        ("0 0.5 0.5 0 0.1", "line 2: bbox width: expected at least 0.01 pixels, got 0"),
        ("0 nan 0.5 0.1 0.1", "line 2: bbox: expected finite numbers"),
        ("0 1.5 0.5 0.1 0.1", "line 2: bbox: expected a box that overlaps its image"),
    ],
)
def test_bad_lines_stop_or_are_dropped(tmp_path: Path, line: str, message: str) -> None:
    write_files(tmp_path, LABELIMG | {"a.txt": f"\ufeff{BOX}{line}\r\n\r\n"})
    write_image(tmp_path / "a.jpg")
    with pytest.raises(UserError) as error:
        read_checked(tmp_path, "yolo")
    assert f"{tmp_path / 'a.txt'}: {message}" in str(error.value)
    checked = read_checked(tmp_path, "yolo", policy="skip")
    assert rows_of(checked) == [("a.jpg", "traffic light", XYWH)]
    assert message in checked.dropped[0]


def test_polygons_are_in_pixels(tmp_path: Path) -> None:
    line = "0 0.1 0.1 0.5 0.1 0.5 0.5\r\n"
    write_files(tmp_path, LABELIMG | {"a.txt": line})
    write_image(tmp_path / "a.jpg")
    found = read_checked(tmp_path, "yolo").images[0].objects[0]
    assert found.polygons[0] == pytest.approx([6, 4, 30, 4, 30, 20])
    assert found.box == pytest.approx((6, 4, 30, 20))


def test_keypoints_are_dropped(tmp_path: Path) -> None:
    text = "names: [person]\ntrain: images\nkpt_shape: [2, 3]\n"
    write_files(tmp_path, {"data.yaml": text, "labels/a.txt": "0 .5 .5 .5 .25 .1 .2 2 .3 .4 1\n"})
    write_image(tmp_path / "images/a.jpg")
    checked = read_checked(tmp_path, "yolo")
    assert rows_of(checked) == [("images/a.jpg", "person", XYWH)]
    assert dict(checked.rows)["dropped, keypoints of objects, whose boxes are kept"] == 1


def test_confidences_are_dropped(tmp_path: Path) -> None:
    write_files(tmp_path, LABELIMG | {"a.txt": f"{BOX.strip()} 0.9\n"})
    write_image(tmp_path / "a.jpg")
    checked = read_checked(tmp_path, "yolo")
    assert rows_of(checked) == [("a.jpg", "traffic light", XYWH)]
    reason = "dropped, confidences of predicted objects, whose boxes are kept"
    assert dict(checked.rows)[reason] == 1


def test_written_segments_join_parts_without_changing_area(tmp_path: Path) -> None:
    write_files(tmp_path, LABELIMG | {"a.txt": "0 .1 .1 .2 .1 .2 .2 .1 .2\n"})
    write_image(tmp_path / "a.jpg")
    checked = read_checked(tmp_path, "yolo")
    found = checked.images[0].objects[0]
    found.polygons.append([30, 20, 42, 20, 42, 28, 30, 28])
    found.box = (6, 4, 42, 28)
    lines = WRITERS["yolo"](checked, tmp_path / "out", WriteOptions(segments=True))
    assert any(line.startswith("polygons of several parts joined to one: 1") for line in lines)
    again = read_checked(tmp_path / "out", "yolo", images=tmp_path)
    joined = again.images[0].objects[0]
    assert joined.box == pytest.approx((6, 4, 42, 28))
    assert polygon_area(joined.polygons[0]) == pytest.approx(6 * 4 + 12 * 8, abs=1e-3)


@pytest.mark.parametrize("method", ["link", "copy"])
def test_images_can_be_linked_or_copied(tmp_path: Path, method: str) -> None:
    write_files(tmp_path / "in", LABELIMG)
    write_image(tmp_path / "in" / "a.jpg")
    checked = read_checked(tmp_path / "in", "yolo")
    WRITERS["yolo"](checked, tmp_path / "out", WriteOptions(copy_images=method))  # type: ignore[arg-type]
    assert (tmp_path / "out/images/a.jpg").is_symlink() == (method == "link")
    assert rows_of(read_checked(tmp_path / "out", "yolo"))[0][0] == "images/a.jpg"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("names: {0: a, 2: b}", "names: expected indices 0, 1"),
        ("names: [a, a]", "names: expected each class once, got a more than once"),
        ("names: []", "names: expected a list of classes"),
    ],
)
def test_bad_names(tmp_path: Path, names: str, message: str) -> None:
    write_files(tmp_path, {"data.yaml": f"{names}\ntrain: images\n"})
    with pytest.raises(UserError, match=message):
        read_checked(tmp_path, "yolo")


def test_a_label_file_that_is_not_text_drops_its_image(tmp_path: Path) -> None:
    write_files(tmp_path, LABELIMG)
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(UserError, match=r"b\.txt: expected UTF-8 text"):
        read_checked(tmp_path, "yolo")
    checked = read_checked(tmp_path, "yolo", policy="skip")
    assert [image.file_name for image in checked.images] == ["a.jpg"]


def test_an_image_that_fits_twice_is_named(tmp_path: Path) -> None:
    write_files(tmp_path / "labels", {"classes.txt": "a\nb\n", "x/a.txt": BOX})
    for name in ("one/a.jpg", "two/a.jpg"):
        write_image(tmp_path / "images" / name)
    with pytest.raises(UserError, match=r"x/a: expected one image in .*, got one/a\.jpg and two/a"):
        read_checked(tmp_path / "labels", "yolo", images=tmp_path / "images")
