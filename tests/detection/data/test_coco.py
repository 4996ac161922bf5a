import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detection.data.coco import ClassMap, detections_to_coco, read_coco
from detection.structures import Detections
from engine.errors import UserError

Document = dict[str, Any]
CocoWriter = Callable[[Document], Path]


def test_a_file_is_packed_by_image(document: Document, write_coco: CocoWriter) -> None:
    annotations = read_coco(write_coco(document))
    assert annotations.classes == ClassMap(("ant", "cow", "zebra"), (3, 7, 90))
    assert annotations.image_ids.tolist() == [70, 5, 9]
    assert [annotations.file_name(row) for row in range(3)] == ["b.png", "a.png", "empty.png"]
    assert annotations.sizes.tolist() == [[40, 60], [50, 30], [30, 30]]
    assert annotations.offsets.tolist() == [0, 1, 3, 3]
    assert annotations.boxes.dtype == np.float32
    assert annotations.boxes[annotations.objects_of(1)].tolist() == [
        [2, 3, 12, 23.5],
        [20, 30, 30, 50],
    ]
    assert annotations.labels.tolist() == [0, 1, 2]
    assert annotations.is_crowd.tolist() == [True, False, False]
    assert annotations.areas.tolist() == [12, 150.5, 200]
    assert annotations.objects_of(2) == slice(3, 3)


def test_segmentations_come_back(document: Document, write_coco: CocoWriter) -> None:
    annotations = read_coco(write_coco(document))
    crowd, cow, zebra = annotations.rows_in_file
    polygons = [part.tolist() for part in annotations.segmentations.polygons(cow)]
    assert polygons == document["annotations"][0]["segmentation"]
    rle = {"size": [40, 60], "counts": annotations.segmentations.run_lengths[crowd]}
    assert coco_mask.area(rle) == 12
    assert annotations.segmentations.polygons(crowd) == []
    assert annotations.segmentations.polygons(zebra) == []
    assert annotations.segmentations.run_lengths[zebra] == b""
    assert len(annotations.segmentations) == 3


@pytest.mark.parametrize(
    "value",
    [
        *(5, "polygon", [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [["a"] * 6], {"counts": [1]}, [3]),
        *([1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5, float("nan")]], [[1, 2, 3, 4, 5, 1e9]]),
        {"size": [30, 50], "counts": [1500]},
        {"size": [50, 30], "counts": [1499]},
        {"size": [50, 30], "counts": [1600, -100]},
        {"size": [50, 30], "counts": "12"},
        {"size": [50, 30], "counts": "\ud800"},
        {"size": [50, 30], "counts": None},
        {"size": [50, 30], "counts": [[1500, "a"]]},
    ],
    ids=str,
)
def test_an_unreadable_mask_is_counted(
    document: Document, write_coco: CocoWriter, value: Any
) -> None:
    document["annotations"][0]["segmentation"] = value
    annotations = read_coco(write_coco(document))
    assert annotations.report.unreadable_masks == 1
    assert annotations.segmentations.polygons(0) == []
    assert len(annotations.boxes) == 3


def test_the_ledger_counts(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"] += [
        {"id": 20, "image_id": 9, "category_id": 3, "bbox": [1, 1, 0, 5]},
        {"id": 21, "image_id": 9, "category_id": 3, "bbox": [1, 1, -2, 5]},
        {"id": 22, "image_id": 9, "category_id": 7, "bbox": [31, 0, 5, 5]},
        {"id": 23, "image_id": 9, "category_id": 7, "bbox": [float("nan"), 0, 5, 5]},
        {"id": 24, "image_id": 70, "category_id": 7, "bbox": [-1, 0, 5, 5], "iscrowd": 0},
    ]
    annotations = read_coco(write_coco(document), on_bad_box="skip")
    assert annotations.report.rows() == [
        ("images", 3),
        ("images without boxes", 1),
        ("boxes", 4),
        ("crowd regions among them", 1),
        ("boxes clipped to their image", 1),
        ("areas filled in", 6),
        ("iscrowd filled in", 5),
        ("boxes dropped, not finite: cow", 1),
        ("boxes dropped, no width or height: ant", 2),
        ("boxes dropped, outside its image: cow", 1),
    ]
    assert annotations.report.boxes_by_class == {"ant": 1, "cow": 2, "zebra": 1}
    assert annotations.boxes[annotations.objects_of(0)].tolist() == [[0, 0, 60, 40], [0, 0, 4, 5]]


def test_difficult_objects_are_marked_and_counted(
    document: Document, write_coco: CocoWriter
) -> None:
    document["annotations"][0]["difficult"] = 1
    document["annotations"][2]["difficult"] = 0
    annotations = read_coco(write_coco(document))
    assert annotations.is_difficult.tolist() == [False, True, False]
    assert ("difficult objects among them", 1) in annotations.report.rows()
    document["annotations"][2]["difficult"] = 1
    with pytest.raises(UserError, match="expected at least one box to train on, got 3: 1 crowd"):
        read_coco(write_coco(document))


def change(key: str, position: int, **values: Any) -> Callable[[Document], None]:
    return lambda document: document[key][position].update(values)


def remove(key: str, position: int, name: str) -> Callable[[Document], None]:
    return lambda document: document[key][position].pop(name)


@pytest.mark.parametrize(
    ("breaks", "expected"),
    [
        pytest.param(lambda d: d.pop("images"), "images: expected a list, got nothing", id="key"),
        pytest.param(
            lambda d: d.update(annotations={}),
            "annotations: expected a list, got an object",
            id="type",
        ),
        pytest.param(
            lambda d: d["annotations"].append(3),
            "annotations[3]: expected an object, got 3",
            id="entry",
        ),
        pytest.param(
            lambda d: d.update(categories=[]),
            "categories: expected at least one, got none",
            id="no category",
        ),
        pytest.param(
            lambda d: d.update(images=[], annotations=[]),
            "images: expected at least one, got none",
            id="no image",
        ),
        pytest.param(
            lambda d: d.update(annotations=[]),
            "annotations: expected at least one box to train on, got none",
            id="no annotation",
        ),
        pytest.param(
            lambda d: d.update(annotations=d["annotations"][1:2]),
            "annotations: expected at least one box to train on, got 1, all crowd regions",
            id="crowds alone",
        ),
        pytest.param(
            change("images", 1, id=70),
            "image ids: expected each one once, got 70 more than once",
            id="image id twice",
        ),
        pytest.param(
            change("annotations", 1, id=11),
            "annotation ids: expected each one once, got 11 more than once",
            id="annotation id twice",
        ),
        pytest.param(
            change("categories", 1, id=90),
            "category ids: expected each one once, got 90 more than once",
            id="category id twice",
        ),
        pytest.param(
            change("categories", 1, name="cow"),
            "category names: expected each one once, got cow more than once",
            id="category name twice",
        ),
        pytest.param(
            change("categories", 1, name=4),
            "categories[1]: name: expected a name, got 4",
            id="category name",
        ),
        pytest.param(
            change("images", 1, file_name="\ud800.png"),
            "images[1]: file_name: expected a name, got '\\ud800.png'",
            id="half a character",
        ),
        pytest.param(
            change("annotations", 0, image_id=71),
            "annotation 11: image_id: no image has the id 71",
            id="unknown image",
        ),
        pytest.param(
            change("annotations", 0, category_id=4),
            "annotation 11 of image a.png: category_id: no category has the id 4",
            id="unknown category",
        ),
        pytest.param(
            remove("annotations", 0, "id"),
            "annotations[0]: id: expected an integer, got nothing",
            id="annotation without id",
        ),
        pytest.param(
            change("annotations", 0, image_id="5"),
            "annotation 11: image_id: expected an integer, got '5'",
            id="image id as text",
        ),
        pytest.param(
            change("images", 0, id=True),
            "image b.png: id: expected an integer, got True",
            id="image id as bool",
        ),
        pytest.param(
            change("images", 0, id=2**80),
            f"image b.png: id: expected an integer, got {2**80}",
            id="huge id",
        ),
        pytest.param(
            remove("images", 0, "width"),
            "image b.png: width: expected a positive integer, got nothing",
            id="no width",
        ),
        pytest.param(
            change("images", 0, height=0),
            "image b.png: height: expected a positive integer, got 0",
            id="no height",
        ),
        pytest.param(
            remove("images", 0, "file_name"),
            "images[0]: file_name: expected a name, got nothing",
            id="no file name",
        ),
        pytest.param(
            remove("annotations", 0, "bbox"),
            "annotation 11: bbox: expected four numbers [x, y, width, height], got nothing",
            id="no bbox",
        ),
        pytest.param(
            change("annotations", 0, bbox=[1, 2, 3]),
            "annotation 11: bbox: expected four numbers [x, y, width, height], got [1, 2, 3]",
            id="three numbers",
        ),
        pytest.param(
            change("annotations", 0, bbox=[1, 2, 3, "4"]),
            "annotation 11: bbox: expected four numbers [x, y, width, height], got [1, 2, 3, '4']",
            id="number as text",
        ),
        pytest.param(
            change("annotations", 0, bbox=[1, 2, 3, True]),
            "annotation 11: bbox: expected four numbers [x, y, width, height], got [1, 2, 3, True]",
            id="number as bool",
        ),
        pytest.param(
            change("annotations", 0, area=10**400),
            f"annotation 11: area: expected a number, got {10**59}",
            id="huge area",
        ),
        pytest.param(
            change("annotations", 0, area="large"),
            "annotation 11: area: expected a number, got 'large'",
            id="area",
        ),
        pytest.param(
            change("annotations", 0, ignore="yes"),
            "annotation 11: ignore: expected 0 or 1, got 'yes'",
            id="ignore",
        ),
        pytest.param(
            change("annotations", 0, iscrowd=2),
            "annotation 11: iscrowd: expected 0 or 1, got 2",
            id="iscrowd",
        ),
        pytest.param(
            change("annotations", 0, difficult="yes"),
            "annotation 11: difficult: expected 0 or 1, got 'yes'",
            id="difficult",
        ),
        pytest.param(
            change("annotations", 0, bbox=[1, 2, -3, 4]),
            "annotation 11 of image a.png: bbox width: expected at least 0.01 pixels, got -3"
            " (1 bad in all; data.on_bad_box=skip drops them)",
            id="negative width",
        ),
        pytest.param(
            change("annotations", 0, bbox=[1, 2, 3, 0]),
            "annotation 11 of image a.png: bbox height: expected at least 0.01 pixels, got 0"
            " (1 bad in all; data.on_bad_box=skip drops them)",
            id="zero height",
        ),
        pytest.param(
            change("annotations", 0, bbox=[1, 2, float("nan"), 4]),
            "annotation 11 of image a.png: bbox: expected finite numbers, got [1.0, 2.0, nan, 4.0]"
            " (1 bad in all; data.on_bad_box=skip drops them)",
            id="nan",
        ),
        pytest.param(
            change("annotations", 0, bbox=[40, 2, 3, 4]),
            "annotation 11 of image a.png: bbox: expected a box that overlaps its image of"
            " 30x50 (width x height), got [40.0, 2.0, 3.0, 4.0] (which it would with width and"
            " height swapped) (1 bad in all; data.on_bad_box=skip drops them)",
            id="outside",
        ),
    ],
)
def test_every_fault_is_one_line(
    document: Document,
    write_coco: CocoWriter,
    breaks: Callable[[Document], None],
    expected: str,
) -> None:
    path = write_coco(document)
    breaks(document)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError) as error:
        read_coco(path)
    assert str(error.value) == f"{path}: {expected}"


def test_a_validation_file_may_have_no_boxes(document: Document, write_coco: CocoWriter) -> None:
    document["annotations"] = []
    annotations = read_coco(write_coco(document), need_boxes=False)
    assert annotations.boxes.shape == (0, 4)
    assert annotations.offsets.tolist() == [0, 0, 0, 0]
    assert annotations.report.rows() == [("images", 3), ("images without boxes", 3), ("boxes", 0)]


def test_classes_must_agree(document: Document, write_coco: CocoWriter) -> None:
    path = write_coco(document)
    classes = read_coco(path).classes
    assert read_coco(path, classes=classes).classes == classes
    other = ClassMap(("ant", "cow", "Zebra", "yak"), (3, 8, 90, 91))
    with pytest.raises(UserError) as error:
        read_coco(path, classes=other)
    assert str(error.value) == (
        f"{path}: categories differ from the model's: expected 'cow' (id 8), 'Zebra' (id 90),"
        " 'yak' (id 91); got 'cow' (id 7), 'zebra' (id 90)"
    )


def test_results_carry_category_ids_and_xywh() -> None:
    detections = Detections(
        boxes=torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 5.0, 5.0]]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([1, 0]),
    )
    entries = detections_to_coco(42, detections, ClassMap(("ant", "cow"), (3, 7)))
    assert entries == [
        {"image_id": 42, "category_id": 7, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75},
        {"image_id": 42, "category_id": 3, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.5},
    ]
    json.dumps(entries)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("coco128/annotations/instances_train2017.json", (128, 2, 939, 10)),
        ("bccd/annotations/train.json", (205, 0, 2804, 0)),
    ],
    ids=["coco128", "bccd"],
)
def test_real_files_agree_with_pycocotools(
    data_dir: Path, file: str, counts: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = read_coco(data_dir / file)
    report = annotations.report
    boxes = sum(report.boxes_by_class.values())
    assert (report.images, report.images_without_boxes, boxes, report.crowds) == counts
    reference = COCO(data_dir / file)
    capsys.readouterr()
    for row, image_id in enumerate(annotations.image_ids.tolist()):
        objects = annotations.objects_of(row)
        entries = reference.imgToAnns[image_id]
        expected = torch.tensor([entry["bbox"] for entry in entries]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        got = torch.from_numpy(annotations.boxes[objects])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
        ids = [annotations.classes.category_ids[label] for label in annotations.labels[objects]]
        assert ids == [entry["category_id"] for entry in entries]
        for at, entry in zip(annotations.rows_in_file[objects], entries, strict=True):
            polygons = [part.tolist() for part in annotations.segmentations.polygons(at)]
            run_lengths = annotations.segmentations.run_lengths[at]
            if entry["iscrowd"]:
                rle = {"size": entry["segmentation"]["size"], "counts": run_lengths}
                assert coco_mask.area(rle) == coco_mask.area(reference.annToRLE(entry))
            else:
                assert polygons == [np.float32(part).tolist() for part in entry["segmentation"]]
                assert run_lengths == b""
