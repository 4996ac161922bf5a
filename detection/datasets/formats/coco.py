"""COCO JSON: writing it from any format, and reading it (Roboflow's export too)."""

import json
from pathlib import Path
from typing import Any

from detection.data.coco_json import parse_coco, read_annotations, read_categories, read_images
from detection.data.json_files import without_garbage_collection
from detection.datasets.formats.checking import CheckedDocument
from detection.datasets.formats.document import (
    Document,
    FoundImage,
    FoundObject,
    ReadOptions,
    WriteOptions,
    choose_splits,
)
from detection.datasets.formats.shapes import mask_area, polygon_area
from detection.datasets.voc import Category
from engine import paths
from engine.errors import UserError
from engine.files import write_file

ROBOFLOW_FILE = "_annotations.coco.json"
DECIMALS = 6
"""Decimals of written coordinates: removes the noise of x + width - x."""


def to_coco(checked: CheckedDocument) -> dict[str, Any]:
    """Return a COCO document; ids of images and annotations start at 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(checked.images, start=1):
        assert image.size is not None
        height, width = image.size
        entry = {"id": image_id, "file_name": image.file_name, "width": width, "height": height}
        images.append(entry)
        for found in image.objects:
            category = checked.classes[found.name].category_id
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
            annotations.append(ids | _annotation(found, image.size))
    return {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": each.category_id, "name": each.name} for each in checked.classes.values()
        ],
    }


def _annotation(found: FoundObject, size: tuple[int, int]) -> dict[str, Any]:
    """Return the COCO annotation of an object, without ids."""
    assert found.box is not None
    x, y = (round(value, DECIMALS) for value in found.box[:2])
    width, height = (round(found.box[side + 2] - found.box[side], DECIMALS) for side in (0, 1))
    area: float = width * height
    annotation: dict[str, Any] = {}
    if found.polygons:
        area = sum(map(polygon_area, found.polygons))
        parts = [[round(value, DECIMALS) for value in part] for part in found.polygons]
        annotation["segmentation"] = parts
    elif found.run_lengths:
        area = mask_area(found.run_lengths, size)
        counts = found.run_lengths.decode()
        annotation["segmentation"] = {"size": list(size), "counts": counts}
    if found.area is not None:
        area = found.area
    annotation |= {"bbox": [x, y, width, height], "area": round(area, DECIMALS)}
    annotation["iscrowd"] = int(found.is_crowd)
    return annotation | ({"difficult": 1} if found.is_difficult else {})


def write(checked: CheckedDocument, output: Path, options: WriteOptions) -> list[str]:
    """Write COCO JSON.

    Returns:
        Lines for the console.

    Raises:
        UserError: the file cannot be written.
    """
    paths.make_folder(output.parent)
    write_file(output, json.dumps(to_coco(checked), ensure_ascii=False))
    return [f"{output}: file names are relative to {checked.root}"]


def read(source: Path, options: ReadOptions) -> Document:
    """Read a COCO JSON, or a folder of Roboflow's export: `SPLIT/_annotations.coco.json`.

    Raises:
        UserError: a file cannot be read or is not consistent.
    """
    files = {"": source}
    document = Document(root=source.parent)
    if paths.is_folder(source):
        document.root = source
        names = ["", *(f"{name}/" for name in paths.names_in(source))]
        candidates = {name: source / name / ROBOFLOW_FILE for name in names}
        files = {name: path for name, path in candidates.items() if paths.is_file(path)}
        if not files:
            expected = f"expected a COCO JSON, or a folder with {ROBOFLOW_FILE}"
            raise UserError(f"{source}: {expected}, got a folder without it")
        splits = [name.rstrip("/") for name in files]
        chosen = choose_splits(options.split, splits, source)
        files = {name: path for name, path in files.items() if name.rstrip("/") in chosen}
    classes: dict[str, Category] = {}
    for prefix, path in files.items():
        found = _read_file(path, prefix, document)
        # the splits of one export have the same classes
        classes |= {name: each for name, each in found.items() if name not in classes}
    document.classes = classes
    return document


@without_garbage_collection()
def _read_file(path: Path, prefix: str, document: Document) -> dict[str, Category]:
    """Add the images of one file to the document; return its classes by name."""
    content = parse_coco(path)
    categories = read_categories(content["categories"], path)
    table = read_images(content["images"], path)
    sizes = dict(zip(table.ids.tolist(), table.sizes.tolist(), strict=True))
    columns = read_annotations(content["annotations"], path, sizes=sizes)
    used = set(columns.category_ids.tolist())
    categories = _without_dummy(categories, content["categories"], used, document)
    names = dict(categories)
    images = {}
    for row, image_id in enumerate(table.ids.tolist()):
        height, width = sizes[image_id]
        images[image_id] = FoundImage(prefix + table.names[row].decode(), (height, width))
    for row, image_id in enumerate(columns.image_ids.tolist()):
        where = f"{path}: annotation {columns.ids[row]}"
        category_id = int(columns.category_ids[row])
        name = names.get(category_id)
        if image_id not in images or name is None:
            message = f"{where}: image_id: no image has the id {image_id}"
            if name is None:
                message = f"{where}: category_id: no category has the id {category_id}"
            document.bad_objects.append(("unknown id", message))
            continue
        x, y, width, height = columns.xywh[row].tolist()
        found = FoundObject(name, where, (x, y, x + width, y + height))
        found.polygons = [part.tolist() for part in columns.segmentations.polygons(row)]
        found.run_lengths = columns.segmentations.run_lengths[row]
        found.area = None if columns.lacks_area[row] else float(columns.areas[row])
        found.is_crowd = bool(columns.is_crowd[row])
        found.is_difficult = bool(columns.is_difficult[row])
        images[image_id].objects.append(found)
    document.images += images.values()
    for what, count in (
        ("masks that cannot be read", columns.unreadable_masks),
        ("parts of polygons that cannot be read", columns.dropped_mask_parts),
        ("flags `ignore`", int(columns.is_ignored.sum())),
        ("keypoints of annotations", sum("keypoints" in each for each in content["annotations"])),
    ):
        document.dropped.counts.update({what: count} if count else {})
    return {name: Category(category_id, name) for category_id, name in categories}


def _without_dummy(
    categories: list[tuple[int, str]],
    entries: list[dict[str, Any]],
    used: set[int],
    document: Document,
) -> list[tuple[int, str]]:
    """Drop the class 0 that Roboflow adds: the name of the project, the supercategory of all."""
    parents = {entry.get("supercategory") for entry in entries if entry.get("id") != 0}
    first_id, name = categories[0]
    if first_id != 0 or 0 in used or parents != {name}:
        return categories
    document.dropped.add("class without objects that is the supercategory of all others", name)
    return categories[1:]
