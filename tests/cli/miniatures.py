"""Miniatures of the paper's data sets, each in its own layout: a few images of 60 x 40 pixels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detection.weights.coco_classes import COCO_IDS, COCO_NAMES
from tests.detection.datasets.voc_files import XmlRow, write_image, write_voc, write_xml

WNIDS = ("n01440764", "n02219486")
"""Two classes: a tench and an ant."""
CocoObject = tuple[int, tuple[int, int, int, int]]
"""Category id, and x, y, width, height."""
COCO_OBJECTS: Sequence[CocoObject] = ((17, (2, 3, 30, 30)), (1, (20, 5, 35, 33)))
"""A cat and a person."""
CELLS: Sequence[CocoObject] = ((1, (2, 3, 30, 30)), (2, (20, 5, 35, 33)))
"""A white and a red blood cell."""
OBJECTS: Sequence[XmlRow] = (("n02219486", 0, 0, 30, 20, ""), ("n01440764", 10, 5, 55, 38, ""))


def write_miniatures(data: Path) -> None:
    """Write all of them below a folder, as the paths in configs/ expect them below data/."""
    write_coco_2014(data / "coco")
    years = {
        "VOC2007": {"trainval": "000005 000007", "test": "000001 000002"},
        "VOC2012": {"train": "2008_000002", "val": "2008_000003"},
    }
    years["VOC2012"]["trainval"] = " ".join(years["VOC2012"].values())
    for year, sets in years.items():
        write_voc(data / "voc" / "VOCdevkit", year, sets)
    write_image(data / "voc" / "test" / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2008_000001.jpg")
    write_ilsvrc_detection(data / "ilsvrc")
    write_imagenet(data / "imagenet")
    write_ilsvrc_localization(data / "ILSVRC")


def write_coco_2014(root: Path) -> None:
    """Write COCO 2014's train and val, and test-dev of 2015, whose JSON has no annotations."""
    categories = dict(zip(COCO_IDS, COCO_NAMES, strict=True))
    for number, split in enumerate(("train2014", "val2014", "test2015")):
        names = {
            image_id: f"{split}/COCO_{split}_{image_id:012}.jpg"
            for image_id in (10 * number + 1, 10 * number + 2)
        }
        for name in names.values():
            write_image(root / name)
        file_names = {image_id: name.split("/")[1] for image_id, name in names.items()}
        document = coco_document(file_names, categories, COCO_OBJECTS)
        name = f"instances_{split}"
        if split == "test2015":
            name = "image_info_test-dev2015"
            del document["annotations"]
        write_json(root / "annotations" / f"{name}.json", document)


def write_bccd(root: Path) -> None:
    """Write blood cells: one folder of images, and three splits of two images."""
    categories = {1: "WBC", 2: "RBC", 3: "Platelets"}
    for number, split in enumerate(("train", "val", "test")):
        file_names = {k: f"BloodImage_{k:05}.jpg" for k in (10 * number + 1, 10 * number + 2)}
        for name in file_names.values():
            write_image(root / "images" / name)
        document = coco_document(file_names, categories, CELLS)
        write_json(root / "annotations" / f"{split}.json", document)


def coco_document(
    file_names: dict[int, str], categories: dict[int, str], objects: Sequence[CocoObject]
) -> dict[str, Any]:
    """Return COCO's JSON of images by their ids, each with these objects."""
    images = [
        {"id": image_id, "file_name": name, "height": 40, "width": 60}
        for image_id, name in file_names.items()
    ]
    annotations = [
        {
            "id": 10 * image_id + number,
            "image_id": image_id,
            "category_id": category_id,
            "iscrowd": 0,
            "area": box[2] * box[3],
            "bbox": box,
        }
        for image_id in file_names
        for number, (category_id, box) in enumerate(objects)
    ]
    named = [{"id": category_id, "name": name} for category_id, name in categories.items()]
    return {"info": {}, "images": images, "categories": named, "annotations": annotations}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def write_ilsvrc_detection(root: Path) -> None:
    """Write ILSVRC's detection task: two training images, four of val, one of test."""
    train = [f"ILSVRC2013_train/{wnid}/{wnid}_1" for wnid in WNIDS]
    val = [f"ILSVRC2012_val_{number:08}" for number in range(1, 5)]
    for split, names in (("train", train), ("val", val)):
        for name in names:
            write_image(root / "Data" / "DET" / split / f"{name}.JPEG")
            write_xml(root / "Annotations" / "DET" / split / f"{name}.xml", OBJECTS)
    write_image(root / "Data" / "DET" / "test" / "ILSVRC2012_test_00000001.JPEG")
    (root / "map_det.txt").write_text(f"{WNIDS[1]} 1 ant\n{WNIDS[0]} 2 tench\n")


def write_imagenet(root: Path) -> None:
    """Write ImageNet's folders: four training images and two of val for each class."""
    for split, count in (("train", 4), ("val", 2)):
        for wnid in WNIDS:
            for number in range(count):
                write_image(root / split / wnid / f"{number}.JPEG")


def write_ilsvrc_localization(root: Path) -> None:
    """Write ILSVRC's localization task: two training images of each class, two of val."""
    names = {
        "train": [f"{wnid}/{wnid}_{number}" for wnid in WNIDS for number in range(2)],
        "val": ["ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002"],
    }
    lists = root / "ImageSets" / "CLS-LOC"
    lists.mkdir(parents=True)
    for split, file in (("train", "train_loc"), ("val", "val")):
        lines = [f"{name} {number}\n" for number, name in enumerate(names[split], start=1)]
        (lists / f"{file}.txt").write_text("".join(lines))
        for name in names[split]:
            write_image(root / "Data" / "CLS-LOC" / split / f"{name}.JPEG")
            objects = [each for each in OBJECTS if each[0] in (name[:9], "n02219486")]
            write_xml(root / "Annotations" / "CLS-LOC" / split / f"{name}.xml", objects)
