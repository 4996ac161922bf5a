"""The files of a prediction in each format, written from its lines without holding them in memory.

A line has `file_name`, and either `skipped` (why the image has no results) or its `size` (height,
width) and `detections`, entries of COCO results without names.
"""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from detection.commands.predict_outlines import outlines
from detection.data.coco import ClassMap
from detection.datasets.formats.csv_table import HEADER
from detection.datasets.formats.document import Tally
from detection.datasets.formats.folders import CLASSES_FILE, number_text, write_folder
from detection.datasets.formats.shapes import mask_area
from detection.datasets.formats.yolo_files import DECIMALS
from detection.visualize import free_numbers, numbered_name
from engine.files import write_atomically, write_file
from engine.paths import resolved
from engine.run_files import DETECTIONS_FILE
from engine.yaml_text import dump_yaml

ANNOTATIONS_FILE = "annotations.json"
CSV_FILE = "detections.csv"
ANNOTATIONS_START = '{"info": {}, "licenses": [], "categories": ['
CSV_HEADER = (*HEADER, "score")
DATA_FILE = "data.yaml"
DATA_START = "# resdet predict\n"
LABELS = "labels"
"""Folder of YOLO's label files."""

Lines = Iterable[Mapping[str, Any]]


def write_results(lines: Lines, output: Path, classes: ClassMap) -> None:
    """Write detections.json: COCO results with `file_name` and `category_name`, by image."""
    names = _names_by_id(classes)

    def entries() -> Iterator[str]:
        for line in lines:
            for entry in line.get("detections", ()):
                # names let eval.py match annotations with other ids
                named = {
                    "file_name": line["file_name"],
                    "category_name": names[entry["category_id"]],
                }
                yield json.dumps(named | entry)

    write_atomically(output / DETECTIONS_FILE, lambda file: _write_list(file, entries(), end="\n"))


def write_csv(lines: Lines, output: Path, classes: ClassMap) -> list[str]:
    """Write detections.csv: a row for each detection, with the edges of its box in pixels."""
    names, dropped = _names_by_id(classes), Tally()

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for line in _with_results(lines):
            height, width = line["size"]
            for entry in line["detections"]:
                x, y, w, h = entry["bbox"]
                corners = map(number_text, (x, y, x + w, y + h))
                name = names[entry["category_id"]]
                writer.writerow((line["file_name"], width, height, name, *corners, entry["score"]))
                _count_mask(entry, dropped)
        text.flush()
        text.detach()

    write_atomically(output / CSV_FILE, write)
    return [f"{output / CSV_FILE}: rows of {', '.join(CSV_HEADER)}", *dropped.rows()]


def write_yolo(lines: Lines, output: Path, classes: ClassMap) -> list[str]:
    """Write labels/NAME.txt for each image, classes.txt and data.yaml, as Ultralytics does.

    A line is `class x y width height confidence`, in fractions of the image. An image without
    detections has an empty file, one that was skipped has none.
    """
    numbers = {category_id: number for number, category_id in enumerate(classes.category_ids)}
    dropped = Tally()
    # apart from those of drawings, which also keep away from other files
    of_images = free_numbers([line["file_name"] for line in lines], None)

    def files() -> Iterator[tuple[str, str]]:
        for line, of_image in zip(lines, of_images, strict=True):
            if "detections" not in line:
                continue
            height, width = line["size"]
            rows = []
            for entry in line["detections"]:
                x, y, w, h = entry["bbox"]
                box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                values = " ".join(f"{value:.{DECIMALS}f}" for value in (*box, entry["score"]))
                rows.append(f"{numbers[entry['category_id']]} {values}\n")
                _count_mask(entry, dropped)
            name = numbered_name(line["file_name"], of_image).removesuffix(".jpg")
            yield f"{name}.txt", "".join(rows)

    count = write_folder(output / LABELS, files(), force=True)
    data = {"path": str(resolved(output)), "train": "images"}
    text = dump_yaml(data | {"names": dict(enumerate(classes.names))})
    write_file(output / DATA_FILE, DATA_START + text)
    write_file(output / CLASSES_FILE, "".join(f"{name}\n" for name in classes.names))
    return [
        f"{output / LABELS}: {count} label files; data.yaml expects the images in "
        f"{output / 'images'}",
        *dropped.rows(),
    ]


def write_annotations(lines: Lines, output: Path, classes: ClassMap) -> list[str]:
    """Write annotations.json: COCO annotations with the ids of detections.json, and scores.

    Masks are polygons. Detections without an area, of box or mask, are dropped and counted.
    """
    root = _common_folder(line["file_name"] for line in _with_results(lines))
    path = output / ANNOTATIONS_FILE
    dropped = Tally()

    def images() -> Iterator[str]:
        for line in _with_results(lines):
            height, width = line["size"]
            name = line["file_name"][len(root) :]
            size = {"width": width, "height": height}
            yield json.dumps({"id": line["image"], "file_name": name, **size})

    def annotations() -> Iterator[str]:
        ids = itertools.count(1)  # pycocotools takes 0 for none
        for line in _with_results(lines):
            for entry in line["detections"]:
                annotation = _annotation(entry)
                if annotation is None:
                    dropped.add("dropped, detections whose box or mask is empty", line["file_name"])
                    continue
                yield json.dumps({"id": next(ids), **annotation})

    def write(file: BinaryIO) -> None:
        categories = [
            {"id": category_id, "name": name, "supercategory": ""}
            for name, category_id in zip(classes.names, classes.category_ids, strict=True)
        ]
        file.write(f'{ANNOTATIONS_START}{json.dumps(categories)[1:]}, "images": '.encode())
        _write_list(file, images(), end=',\n"annotations": ')
        _write_list(file, annotations(), end="}\n")

    write_atomically(path, write)
    where = f"relative to {root}" if root else "those of the images"
    return [f"{path}: file names are {where}", *dropped.rows()]


FORMATS: Mapping[str, Callable[[Lines, Path, ClassMap], list[str]]] = {
    "csv": write_csv,
    "yolo": write_yolo,
    "coco-annotations": write_annotations,
}
"""Formats besides COCO results. Each returns lines for the console."""


def _annotation(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the annotation of a detection, without id; None if it has no area."""
    width, height = entry["bbox"][2:]
    if width <= 0 or height <= 0:
        return None
    annotation = dict(entry) | {"area": width * height, "iscrowd": 0}
    if "segmentation" in entry:
        size, code = tuple(entry["segmentation"]["size"]), entry["segmentation"]["counts"].encode()
        annotation["area"] = mask_area(code, size)
        if not annotation["area"]:
            return None
        # CVAT and Label Studio take run lengths for crowd regions, or not at all
        annotation["segmentation"] = outlines(code, size)
    return annotation


def _common_folder(names: Iterable[str]) -> str:
    """Return the start of all names that ends with a slash; it may be empty."""
    root: str | None = None
    for name in names:
        folder = name[: name.rfind("/") + 1]
        root = folder if root is None else root
        while not folder.startswith(root):
            root = root[: root.rfind("/", 0, -1) + 1]
    return root or ""


def _names_by_id(classes: ClassMap) -> dict[int, str]:
    return dict(zip(classes.category_ids, classes.names, strict=True))


def _with_results(lines: Lines) -> Iterator[Mapping[str, Any]]:
    return (line for line in lines if "detections" in line)


def _count_mask(entry: Mapping[str, Any], dropped: Tally) -> None:
    if "segmentation" in entry:
        dropped.add("dropped, masks of detections whose boxes are kept")


def _write_list(file: BinaryIO, items: Iterable[str], *, end: str) -> None:
    """Write items as a JSON list, one a line."""
    file.write(b"[")
    for number, item in enumerate(items):
        file.write(f",\n{item}".encode() if number else item.encode())
    file.write(f"]{end}".encode())
