"""Miniatures of the paper's data sets, each in its own layout: a few images of 60 x 40 pixels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detection.weights.coco_classes import COCO_IDS, COCO_NAMES
from tests.detection.datasets.voc_files import XmlRow, write_image, write_voc, write_xml

WNIDS = ("n01440764", "n02219486")
"""Two classes: a tench and an ant."""
COCO_OBJECTS = ((17, (2, 3, 30, 30)), (1, (20, 5, 35, 33)))
"""Category id (cat, person) and x, y, width, height."""
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
    categories = [{"id": k, "name": name} for k, name in zip(COCO_IDS, COCO_NAMES, strict=True)]
    for number, split in enumerate(("train2014", "val2014", "test2015")):
        images = []
        annotations = []
        for image_id in (10 * number + 1, 10 * number + 2):
            name = f"COCO_{split}_{image_id:012}.jpg"
            write_image(root / split / name)
            images.append({"id": image_id, "file_name": name, "height": 40, "width": 60})
            for number_in_image, (category_id, box) in enumerate(COCO_OBJECTS):
                entry = {"image_id": image_id, "category_id": category_id, "iscrowd": 0}
                entry |= {"id": 10 * image_id + number_in_image, "area": box[2] * box[3]}
                annotations.append({**entry, "bbox": box})
        document: dict[str, Any] = {"info": {}, "images": images, "categories": categories}
        name = "image_info_test-dev2015"
        if split != "test2015":
            document["annotations"] = annotations
            name = f"instances_{split}"
        path = root / "annotations" / f"{name}.json"
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
