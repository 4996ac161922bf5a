"""Conversion of VOC's XML annotations to COCO: box conventions, bad data, summary."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from detection.data.coco import read_coco
from detection.datasets.formats.checking import LINES_SHOWN
from detection.datasets.formats.document import BoxConvention
from detection.datasets.voc import Category, ImageSet, find_sets, number_classes
from detection.datasets.voc_to_coco import Conversion, convert, detect_convention
from detection.evaluation.coco_ap import score_file
from engine.errors import UserError
from tests.detection.datasets.voc_files import XmlRow, write_image, write_voc, write_xml

CLASSES = number_classes(["cat", "dog"])


def one_image(tmp_path: Path, objects: list[XmlRow], **changes: Any) -> Conversion:
    """Convert one image, a.jpg of 60x40, with these objects."""
    write_xml(tmp_path / "a.xml", objects)
    if not (tmp_path / "a.jpg").exists():
        write_image(tmp_path / "a.jpg")
    arguments = {"classes": CLASSES, "boxes": "pixels", **changes}
    return convert(tmp_path, [ImageSet(".", ".", ("a",))], **arguments)


def test_two_years_become_one_document(tmp_path: Path) -> None:
    write_voc(tmp_path, "VOC2007", {"trainval": "000001 000002", "test": "000003"})
    write_voc(tmp_path, "VOC2012", {"trainval": "000001"})
    sets = find_sets(tmp_path, ["VOC2007/trainval", "VOC2012/trainval", "VOC2007/trainval"])
    conversion = convert(tmp_path, sets, classes=CLASSES, boxes="pixels")
    document = conversion.document
    assert document["images"] == [
        {"id": number, "file_name": name, "width": 60, "height": 40}
        for number, name in enumerate(
            [
                "VOC2007/JPEGImages/000001.jpg",
                "VOC2007/JPEGImages/000002.jpg",
                "VOC2012/JPEGImages/000001.jpg",
            ],
            start=1,
        )
    ]
    cat = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 30, 20], "area": 600, "iscrowd": 0}
    dog = {"image_id": 1, "category_id": 2, "bbox": [10, 20, 50, 20], "area": 1000, "iscrowd": 0}
    expected = [{"id": 1, **cat}, {"id": 2, **dog, "difficult": 1}]
    assert document["annotations"][:2] == expected
    assert [annotation["id"] for annotation in document["annotations"]] == list(range(1, 7))
    assert document["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert conversion.checked.rows == [
        ("images", 3),
        ("objects", 6),
        ("difficult objects among them", 3),
        ("classes", 2),
        ("images listed more than once", 2),
    ]
    conversion.write(tmp_path / "new" / "all.json")
    annotations = read_coco(tmp_path / "new" / "all.json")
    assert annotations.report.difficult == 3
    assert annotations.report.clipped_boxes == 0


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [("pixels", [0, 0, 60, 40]), ("corners", [1, 1, 59, 39])],
    ids=["pixels", "corners"],
)
def test_both_conventions(tmp_path: Path, boxes: BoxConvention, expected: list[float]) -> None:
    document = one_image(tmp_path, [("cat", 1, 1, 60, 40, "")], boxes=boxes).document
    assert document["annotations"][0]["bbox"] == expected


def test_equal_coordinates_are_a_pixel_or_an_empty_box(tmp_path: Path) -> None:
    rows: list[XmlRow] = [("cat", 7, 7, 7, 7, "")]
    conversion = one_image(tmp_path, rows)
    assert conversion.document["annotations"][0]["bbox"] == [6, 6, 1, 1]
    assert ("boxes one pixel wide or high: --boxes corners?", 1) in conversion.checked.rows
    with pytest.raises(UserError, match="bbox width: expected at least"):
        one_image(tmp_path, rows, boxes="corners")


@pytest.mark.parametrize(("boxes", "expected"), [("pixels", 1), ("corners", 0)])
def test_boxes_that_begin_at_zero_are_suspicious_pixels(
    tmp_path: Path, boxes: BoxConvention, expected: int
) -> None:
    rows: list[XmlRow] = [("cat", 0, 5, 7, 7, ""), ("cat", 1, 5, 7, 7, "")]
    counts = dict(one_image(tmp_path, rows, boxes=boxes).checked.rows)
    assert counts.get("boxes that begin at pixel 0, not 1: --boxes corners?", 0) == expected


BAD = {
    "no size": (("cat", 9, 9, 8, 20, ""), "no width or height: cat", "bbox width: expected at"),
    "inverted": (("cat", 9, 20, 30, 9, ""), "no width or height: cat", "bbox height: expected"),
    "not finite": (("dog", 9, 9, float("nan"), 20, ""), "not finite: dog", "expected finite"),
    "outside": (("dog", 70, 9, 80, 20, ""), "outside its image: dog", "that overlaps its image"),
    "class": (("cow", 1, 1, 8, 8, ""), "unknown class: cow", "such as cat, dog, got cow"),
}


@pytest.mark.parametrize(("row", "reason", "message"), BAD.values(), ids=BAD)
def test_bad_objects_raise_or_are_dropped(
    tmp_path: Path, row: XmlRow, reason: str, message: str
) -> None:
    rows: list[XmlRow] = [("cat", 1, 1, 60, 40, ""), row, ("dog", 1, 1, 5, 5, "")]
    with pytest.raises(UserError, match=message) as error:
        one_image(tmp_path, rows)
    assert str(error.value).startswith(f"{tmp_path / 'a.xml'}: object 2 ({row[0]}): ")
    conversion = one_image(tmp_path, rows, on_bad_box="skip")
    assert str(error.value) == f"{conversion.checked.dropped[0]}; --on-bad-box skip drops it"
    assert len(conversion.checked.dropped) == 1
    assert (f"objects dropped, {reason}", 1) in conversion.checked.rows
    assert ("objects", 2) in conversion.checked.rows
    assert [each["id"] for each in conversion.document["annotations"]] == [1, 2]


def test_first_bad_object_is_named_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"object 1 \(cow\)"):
        one_image(tmp_path, [("cow", 1, 1, 8, 8, ""), ("cat", 9, 9, 1, 1, "")])


def test_boxes_partly_outside_are_kept_and_counted(tmp_path: Path) -> None:
    conversion = one_image(tmp_path, [("cat", 0, 1, 30, 20, ""), ("cat", 1, 1, 61, 20, "")])
    assert ("boxes partly outside their image", 2) in conversion.checked.rows
    assert conversion.document["annotations"][0]["bbox"] == [-1, 0, 31, 20]


def break_xml(tmp_path: Path) -> None:
    (tmp_path / "b.xml").write_text("<annotation>")


def remove_image(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").unlink()


def break_image(tmp_path: Path) -> None:
    write_xml(tmp_path / "b.xml", [], size="")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8no image")


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda folder: (folder / "b.xml").unlink(), r"b\.xml: no such file"),
        (break_xml, r"b\.xml: not valid XML"),
        (remove_image, r"b\.\*: expected an image with the XML file's name, got none"),
        (break_image, r"b\.jpg: expected a whole"),
    ],
    ids=["no XML", "broken XML", "no image", "broken image"],
)
def test_bad_images_raise_or_are_dropped(tmp_path: Path, breaks: Any, message: str) -> None:
    for name in "abc":
        write_xml(tmp_path / f"{name}.xml", [("cat", 1, 1, 60, 40, "")])
        write_image(tmp_path / f"{name}.jpg")
    breaks(tmp_path)
    sets = [ImageSet(".", ".", ("a", "b", "c"))]
    with pytest.raises(UserError, match=message) as error:
        convert(tmp_path, sets, classes=CLASSES, boxes="pixels")
    conversion = convert(tmp_path, sets, classes=CLASSES, boxes="pixels", on_bad_image="skip")
    assert str(error.value) == f"{conversion.checked.dropped[0]}; --on-bad-image skip drops it"
    assert len(conversion.checked.dropped) == 1
    assert conversion.checked.rows[0] == ("images", 2)
    assert conversion.checked.rows[-1] == ("images dropped", 1)
    assert [image["id"] for image in conversion.document["images"]] == [1, 2]


def test_first_faults_are_reported_together(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(13)]
    for name in names:
        write_xml(tmp_path / f"{name}.xml", [("cow", 1, 1, 60, 40, "")])
        write_image(tmp_path / f"{name}.jpg")
    sets = [ImageSet(".", ".", tuple(names))]
    with pytest.raises(UserError) as error:
        convert(tmp_path, sets, classes=CLASSES, boxes="pixels")
    message = str(error.value)
    assert message.startswith(
        f"13 objects cannot be converted: {tmp_path / '00.xml'}: object 1 (cow)"
    )
    assert message.count("object 1 (cow)") == 10
    assert message.endswith("; and 3 more; --on-bad-box skip drops them")
    for name in names[5:]:
        (tmp_path / f"{name}.jpg").unlink()
    with pytest.raises(
        UserError, match=r"^8 images cannot be .*05\.\*: .*; --on-bad-image skip drops"
    ):
        convert(tmp_path, sets, classes=CLASSES, boxes="pixels")


def test_file_name_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    name = os.fsdecode("测试".encode("gbk"))
    write_xml(tmp_path / f"{name}.xml", [])
    write_image(tmp_path / f"{name}.jpg")
    sets = find_sets(tmp_path, [], xml=".")
    with pytest.raises(
        UserError, match="expected a file name in UTF-8, got another encoding"
    ) as error:
        convert(tmp_path, sets, classes=CLASSES, boxes="pixels")
    assert str(error.value).isprintable()


CONVENTIONS: dict[str, tuple[list[Any], BoxConvention, str]] = {
    "a 0": ([[0, 5, 7, 7], [1, 5, 7, 7]], "corners", "of 2 boxes 1 begin at 0"),
    "a 0 as y": ([[3, 0, 60, 40]], "corners", "of 1 boxes 1 begin at 0"),
    "a 0 and no end": ([[0, 0, 59, 39]], "corners", "1 end one pixel before"),
    "a fraction": ([[3, 5.5, 7, 7]], "corners", "1 have fractions of pixels"),
    "the width": ([[1, 5, 60, 7]], "pixels", "1 of 1 boxes begin at 1 and 1 reach the width"),
    "the height": ([[9, 5, 20, 40]], "pixels", "0 of 1 boxes begin at 1 and 1 reach the width"),
    "one zero of many": (
        [[0, 5, 7, 7], *[[1, 5, 7, 7]] * 30],
        "pixels",
        "30 boxes begin at 1, and only 1 at",
    ),
    "nothing": ([[5, 5, 7, 7]], "pixels", "none of 1 boxes touches the border"),
    "no number": ([[float("nan"), 5, float("inf"), 7]], "pixels", "none of 1 boxes touches"),
    "no box": ([], "pixels", "none of 0 boxes"),
}


@pytest.mark.parametrize(("corners", "expected", "reason"), CONVENTIONS.values(), ids=CONVENTIONS)
def test_convention_is_detected(
    corners: list[list[float]], expected: BoxConvention, reason: str
) -> None:
    sizes = np.tile((40, 60), (len(corners), 1)).reshape(-1, 2)
    found, text = detect_convention(np.array(corners, float).reshape(-1, 4), sizes)
    assert found == expected
    assert reason in text


def test_detected_convention_is_reported(tmp_path: Path) -> None:
    rows: list[XmlRow] = [("cat", 0, 5, 7, 7, "")]
    conversion = one_image(tmp_path, rows, boxes=None)
    assert conversion.document["annotations"][0]["bbox"] == [0, 5, 7, 2]
    assert conversion.checked.lines()[0] == (
        "boxes are read as corners: of 1 boxes 1 begin at 0, which pixels counted from 1 cannot"
        " have; --boxes pixels overrides this"
    )
    assert one_image(tmp_path, rows, boxes="corners").checked.lines() == []


def test_convention_of_real_boxes_is_detected(data_dir: Path) -> None:
    given = json.loads((data_dir / "bccd/annotations/train.json").read_text())
    names = tuple(Path(image["file_name"]).stem for image in given["images"])
    assert "345 of 2805 boxes begin at 1" in bccd(data_dir, names, boxes=None).checked.notes[0]


def test_no_images_left(tmp_path: Path) -> None:
    sets = [ImageSet(".", ".", ("a",))]
    with pytest.raises(UserError, match="expected images to convert, got none"):
        convert(tmp_path, sets, classes=CLASSES, boxes="pixels", on_bad_image="skip")


def test_missing_size_and_classes_are_filled_in(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", height=30, width=50)
    write_xml(tmp_path / "a.xml", [("yak", 1, 1, 9, 9, ""), ("ant", 1, 1, 9, 9, "")], size="")
    sets = [ImageSet(".", ".", ("a",))]
    conversion = convert(tmp_path, sets, classes=None, boxes="pixels")
    assert conversion.document["images"][0]["width"] == 50
    assert conversion.document["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "yak"}]
    assert ("sizes read from the image", 1) in conversion.checked.rows


def test_images_without_objects(tmp_path: Path) -> None:
    conversion = one_image(tmp_path, [], classes={"x": Category(5, "ex")})
    assert conversion.document["annotations"] == []
    assert ("images without objects", 1) in conversion.checked.rows
    assert ("objects", 0) in conversion.checked.rows


def test_console_lists_a_limited_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[XmlRow] = [("cow", 1, 1, 8, 8, "")] * (LINES_SHOWN + 3)
    conversion = one_image(tmp_path, rows, on_bad_box="skip")
    assert len(conversion.checked.dropped) == LINES_SHOWN + 3
    assert conversion.checked.lines()[-1] == "... and 3 more"
    assert len(conversion.checked.lines()) == LINES_SHOWN + 1
    Console(width=80).print(conversion.checked.table())
    assert "objects dropped, unknown class: cow" in capsys.readouterr().out


BLOOD_CELLS = number_classes(["WBC", "RBC", "Platelets"])


def bccd(data_dir: Path, names: tuple[str, ...], **changes: Any) -> Conversion:
    sets = [ImageSet("voc_xml", "images", names)]
    options = {"boxes": "corners", **changes}
    return convert(data_dir / "bccd", sets, classes=BLOOD_CELLS, **options)


def jittered_ground_truth(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return (file name, detection without image id): ground truth with noise, as detections."""
    names = {image["id"]: image["file_name"] for image in document["images"]}
    rng = np.random.default_rng(0)
    found = []
    for annotation in document["annotations"]:
        box = np.array(annotation["bbox"]) + rng.normal(0, 6, size=4)
        category_id = int(rng.choice([1, 2, 3, *[annotation["category_id"]] * 12]))
        detection = {"bbox": np.maximum(box, 1).tolist(), "score": float(rng.random())}
        found.append((names[annotation["image_id"]], {"category_id": category_id, **detection}))
    return found


def test_converted_bccd_gives_the_same_scores_as_its_json(data_dir: Path, tmp_path: Path) -> None:
    given = data_dir / "bccd" / "annotations" / "test.json"
    document = json.loads(given.read_text())
    names = tuple(Path(image["file_name"]).stem for image in document["images"])
    conversion = bccd(data_dir, names)
    assert conversion.checked.dropped == []
    conversion.write(tmp_path / "test.json")
    found = jittered_ground_truth(document)
    metrics = []
    for path, folder in ((given, ""), (tmp_path / "test.json", "images/")):
        images = json.loads(path.read_text())["images"]
        ids = {image["file_name"].removeprefix(folder): image["id"] for image in images}
        results = [{"image_id": ids[name], **detection} for name, detection in found]
        (tmp_path / "results.json").write_text(json.dumps(results))
        report = score_file(tmp_path / "results.json", path, protocols=["voc07", "voc12"])
        metrics.append(report.metrics)
    assert metrics[0] == metrics[1]
    assert 0.2 < metrics[0]["ap"] < 0.9
    assert 0.5 < metrics[0]["voc07_map"] < 1


def test_two_empty_boxes_of_bccd_are_reported(data_dir: Path) -> None:
    names = ("BloodImage_00338", "BloodImage_00343", "BloodImage_00000")
    with pytest.raises(UserError, match=r"00338\.xml: object 13 \(RBC\): bbox width: .* got 0"):
        bccd(data_dir, names)
    conversion = bccd(data_dir, names, on_bad_box="skip")
    assert ("objects dropped, no width or height: RBC", 2) in conversion.checked.rows
    places = [line.split("voc_xml/")[1].split(": bbox")[0] for line in conversion.checked.dropped]
    assert places == [
        "BloodImage_00338.xml: object 13 (RBC)",
        "BloodImage_00343.xml: object 4 (RBC)",
    ]
