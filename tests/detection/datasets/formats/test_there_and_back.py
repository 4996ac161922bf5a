"""COCO JSON to each format and back: objects, classes, crowds and masks are what they were."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data.coco import read_coco
from detection.datasets.formats.checking import CheckedDocument
from detection.datasets.formats.coco import to_coco
from detection.datasets.formats.document import WriteOptions
from detection.datasets.formats.shapes import merge_masks
from detection.datasets.formats.tables import FILE_FORMATS, WRITERS
from engine.errors import UserError
from engine.log import RunLog
from tests.detection.datasets.formats.conversions import read_checked, write_files

SUFFIXES = {"csv": ".csv", "cvat": ".xml", "via": ".json", "coco": ".json"}
FORMATS = [name for name in WRITERS if name != "coco"]
KEEP_MASKS = ("cvat", "labelme")
KEEP_CROWDS = ("cvat", "labelme", "via")
READ: dict[str, dict[str, Any]] = {"voc": {"boxes": "corners"}}


def there_and_back(source: Path, name: str, folder: Path, images: Path) -> CheckedDocument:
    """Write a COCO JSON in a format, and read that; from the images only what it lacks."""
    output = folder / f"out put{SUFFIXES.get(name, '')}"
    WRITERS[name](read_checked(source, "coco"), output, WriteOptions())
    needs_images = name in ("voc", "yolo")
    options = READ.get(name, {}) | ({"images": images} if needs_images else {})
    return read_checked(output, name, **options)


def by_image(document: dict[str, Any]) -> dict[str, list[tuple[str, list[float], int]]]:
    """Return (class, xywh, iscrowd) of the objects by the last part of the file name."""
    files = {image["id"]: image["file_name"].split("/")[-1] for image in document["images"]}
    names = {each["id"]: each["name"] for each in document["categories"]}
    found: dict[str, list[tuple[str, list[float], int]]] = defaultdict(list)
    for each in document["annotations"]:
        row = (names[each["category_id"]], each["bbox"], each.get("iscrowd", 0))
        found[files[each["image_id"]]].append(row)
    return found


def class_names(document: dict[str, Any]) -> list[str]:
    return [each["name"] for each in sorted(document["categories"], key=lambda each: each["id"])]


def part_of(path: Path, count: int, folder: Path) -> Path:
    """Write the first images of a COCO JSON, and those with crowds, as a file of its own."""
    document = json.loads(path.read_text())
    crowds = {each["image_id"] for each in document["annotations"] if each.get("iscrowd")}
    images = [i for n, i in enumerate(document["images"]) if n < count or i["id"] in crowds]
    kept = {image["id"] for image in images}
    rows = [each for each in document["annotations"] if each["image_id"] in kept]
    (folder / "part.json").write_text(
        json.dumps({**document, "images": images, "annotations": rows})
    )
    return folder / "part.json"


@pytest.mark.parametrize("name", FORMATS)
def test_coco128(data_dir: Path, tmp_path: Path, name: str) -> None:
    source = part_of(data_dir / "coco128/annotations/instances_train2017.json", 20, tmp_path)
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    checked = there_and_back(source, name, tmp_path, data_dir / "coco128/train2017")
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before
    given, got = json.loads(source.read_text()), to_coco(checked)
    assert class_names(got) == class_names(given)
    sizes = [
        sorted((i["file_name"].split("/")[-1], i["height"], i["width"]) for i in each["images"])
        for each in (given, got)
    ]
    assert sizes[0] == sizes[1]
    found = by_image(got)
    for file, objects in by_image(given).items():
        expected = [each for each in objects if name in KEEP_CROWDS or not each[2]]
        if name == "masks":  # later objects cover others: their boxes shrink
            assert len(found[file]) <= len(expected)
            continue
        assert [each[0] for each in found[file]] == [each[0] for each in expected]
        assert [each[2] for each in found[file]] == [each[2] for each in expected]
        # the boxes of crowds in COCO's file are up to a pixel off their masks
        for (_, box, is_crowd), (_, other, _) in zip(found[file], expected, strict=True):
            np.testing.assert_allclose(box, other, atol=1.0 if is_crowd else 0.01)
    (tmp_path / "got.json").write_text(json.dumps(got))
    assert len(read_coco(tmp_path / "got.json")) == len(given["images"])


@pytest.mark.parametrize("name", KEEP_MASKS)
def test_masks_are_kept_to_the_pixel(data_dir: Path, tmp_path: Path, name: str) -> None:
    source = part_of(data_dir / "coco128/annotations/instances_train2017.json", 5, tmp_path)
    checked = there_and_back(source, name, tmp_path, data_dir / "coco128/train2017")
    given = read_checked(source, "coco")
    pairs = list(zip(given.images, checked.images, strict=True))
    assert any(found.is_crowd for image in given.images for found in image.objects)
    for before, after in pairs:
        assert before.size is not None
        for one, other in zip(before.objects, after.objects, strict=True):
            codes = [
                each.run_lengths or merge_masks(each.polygons, [], before.size)
                for each in (one, other)
            ]
            assert codes[0] == codes[1]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "masks"])
def test_bccd(data_dir: Path, tmp_path: Path, name: str) -> None:
    source = part_of(data_dir / "bccd/annotations/test.json", 30, tmp_path)
    given = json.loads(source.read_text())
    got = to_coco(there_and_back(source, name, tmp_path, data_dir / "bccd/images"))
    assert class_names(got) == class_names(given)
    assert by_image(got).keys() == by_image(given).keys()
    for file, objects in by_image(given).items():
        for (label, box, _), (expected, other, _) in zip(by_image(got)[file], objects, strict=True):
            assert label == expected
            np.testing.assert_allclose(box, other, atol=0.01)


def test_bccds_xml_is_its_json(data_dir: Path) -> None:
    options: dict[str, Any] = {"images": data_dir / "bccd/images", "boxes": "corners"}
    with pytest.raises(UserError, match=r"2 objects cannot be converted: .*bbox width.* got 0"):
        read_checked(data_dir / "bccd/voc_xml", "voc", **options)
    got = by_image(
        to_coco(read_checked(data_dir / "bccd/voc_xml", "voc", policy="skip", **options))
    )
    expected: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        path = data_dir / f"bccd/annotations/{split}.json"
        expected |= by_image(to_coco(read_checked(path, "coco", policy="skip")))
    assert got == expected


NAMES = ("a b.jpg", "ü/é.jpg", "one/x.png", "two/x.png", "&<\"'>.jpg")


def odd_document() -> dict[str, Any]:
    """Return images with odd names and sizes; the last has no object, classes are not sorted."""
    images = [
        {"id": n, "file_name": name, "width": 60 + n, "height": 40} for n, name in enumerate(NAMES)
    ]
    box = {"bbox": [1.25, 2.5, 10.125, 5], "area": 50.625, "iscrowd": 0}
    square = [[5, 5, 9, 5, 9, 9, 5, 9]]
    mask = {"bbox": [5, 5, 4, 4], "area": 16, "iscrowd": 0, "segmentation": square}
    return {
        "images": images,
        "categories": [{"id": 3, "name": "zebra"}, {"id": 8, "name": 'a "b" & <ü>, c'}],
        "annotations": [
            {"id": 2 * n + k, "image_id": n, "category_id": (3, 8)[k], **shape}
            for n in range(4)
            for k, shape in enumerate((box, mask))
        ],
    }


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("voc", "yolo")])
def test_odd_names(tmp_path: Path, name: str) -> None:
    given = odd_document()
    write_files(tmp_path, {"given.json": json.dumps(given)})
    got = to_coco(there_and_back(tmp_path / "given.json", name, tmp_path, tmp_path))
    assert class_names(got) == class_names(given)
    size = {image["file_name"]: (image["height"], image["width"]) for image in got["images"]}
    assert size == {image["file_name"]: (40, image["width"]) for image in given["images"]}
    count = 4 if name == "masks" else 8
    assert len(got["annotations"]) == count
    assert got["annotations"][-1]["bbox"] == [5, 5, 4, 4]
    if name != "masks":
        assert got["annotations"][0]["bbox"] == [1.25, 2.5, 10.125, 5]


@pytest.mark.parametrize("file_name", ["../../x.jpg", "/etc/x.jpg", "C:\\x.jpg", "a/../../x.jpg"])
@pytest.mark.parametrize("name", ["voc", "yolo", "labelme", "masks"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str, file_name: str) -> None:
    given = odd_document()
    given["images"][0]["file_name"] = file_name
    write_files(tmp_path, {"deep/er/given.json": json.dumps(given)})
    checked = read_checked(tmp_path / "deep/er/given.json", "coco")
    with pytest.raises(UserError, match="expected a file name below the output folder, got one"):
        WRITERS[name](checked, tmp_path / "deep/er/out", WriteOptions())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["given.json"]


def test_two_images_of_one_stem_are_refused(tmp_path: Path) -> None:
    given = odd_document()
    given["images"][1]["file_name"] = "a b.png"
    write_files(tmp_path, {"given.json": json.dumps(given)})
    checked = read_checked(tmp_path / "given.json", "coco")
    with pytest.raises(
        UserError, match=r"a b\.jpg and a b\.png: expected one image for each a b\."
    ):
        WRITERS["yolo"](checked, tmp_path / "out", WriteOptions())


def test_whole_pixels_of_voc(tmp_path: Path) -> None:
    given = odd_document()
    write_files(tmp_path, {"given.json": json.dumps(given)})
    checked = read_checked(tmp_path / "given.json", "coco")
    lines = WRITERS["voc"](checked, tmp_path / "out", WriteOptions(boxes="pixels"))
    assert any(line.startswith("boxes rounded to whole pixels: 4") for line in lines)
    text = (tmp_path / "out/Annotations/a b.xml").read_text()
    assert "<xmin>6</xmin>\n\t\t\t<ymin>6</ymin>\n\t\t\t<xmax>9</xmax>" in text


def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, {"given.json": json.dumps(odd_document())})
    checked = read_checked(tmp_path / "given.json", "coco")

    class Stopping(RunLog):
        def progress(self, iterable: Any, total: int, description: str) -> Any:
            yield next(iter(iterable))
            raise KeyboardInterrupt

    log = Stopping(None, is_main=False)
    with pytest.raises(KeyboardInterrupt):
        WRITERS["labelme"](checked, tmp_path / "out", WriteOptions(log=log))
    assert [path.name for path in tmp_path.iterdir()] == ["given.json"]


def test_one_file_formats_are_those_with_a_suffix() -> None:
    assert set(FILE_FORMATS) == set(SUFFIXES)
