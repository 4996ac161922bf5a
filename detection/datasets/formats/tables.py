"""All formats by name, and recognition of a source's format from its content."""

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from backbones.images import files_below
from detection.data.json_files import parse_json
from detection.datasets.formats import (
    coco,
    csv_table,
    cvat,
    label_studio,
    labelme,
    png_masks,
    via,
    voc,
    yolo,
    yolo_files,
)
from detection.datasets.formats.checking import CheckedDocument
from detection.datasets.formats.document import Document, ReadOptions, WriteOptions
from detection.datasets.voc_xml import parse_xml
from engine import paths
from engine.errors import UserError

READERS: dict[str, Callable[[Path, ReadOptions], Document]] = {
    "coco": coco.read,
    "csv": csv_table.read,
    "cvat": cvat.read,
    "label-studio": label_studio.read,
    "labelme": labelme.read,
    "masks": png_masks.read,
    "roboflow": coco.read,
    "via": via.read,
    "voc": voc.read,
    "yolo": yolo.read,
}
WRITERS: dict[str, Callable[[CheckedDocument, Path, WriteOptions], list[str]]] = {
    "coco": coco.write,
    "csv": csv_table.write,
    "cvat": cvat.write,
    "labelme": labelme.write,
    "masks": png_masks.write,
    "via": via.write,
    "voc": voc.write,
    "yolo": yolo_files.write,
}
FILE_FORMATS = ("coco", "csv", "cvat", "via")
"""Formats that are written as one file; the others as a folder."""


def detect_format(source: Path) -> tuple[str, str]:
    """Return the format of a file or folder, and the reason as a clause.

    Raises:
        UserError: it is none of the formats, or may be several.
    """
    if not paths.exists(source):
        raise UserError(f"{source}: no such file or folder")
    if not paths.is_folder(source):
        return _format_of_file(source)
    return _format_of_folder(source)


def _format_of_folder(source: Path) -> tuple[str, str]:
    for file in (coco.ROBOFLOW_FILE, csv_table.ROBOFLOW_FILE):
        if any(paths.is_file(source / name / file) for name in ("", *paths.names_in(source))):
            return "roboflow" if file == coco.ROBOFLOW_FILE else "csv", f"it has {file}"
    names = [name for name in paths.names_in(source) if not name.startswith(".")]
    for name in names:
        if name.lower().endswith((".yaml", ".yml", ".data")):
            return "yolo", f"it has {name}"
    if cvat.FILE in names:
        return _format_of_file(source / cvat.FILE)
    if png_masks.MAP_FILE in names:
        return "masks", f"it has {png_masks.MAP_FILE}"
    found = {suffix: files_below(source, suffix) for suffix in (".xml", ".json", ".csv")}
    found = {suffix: files for suffix, files in found.items() if files}
    if len(found) > 1:
        got = " and ".join(found)
        raise UserError(f"{source}: expected one kind of file, got {got}; --from names the format")
    for files in found.values():
        return _format_of_file(source / files[0])
    for name, suffix in (("yolo", ".txt"), ("masks", ".png")):
        if files_below(source, suffix):
            return name, f"it has {suffix} files"
    raise UserError(f"{source}: expected annotations of a known format, got none; --from names it")


def _format_of_file(path: Path) -> tuple[str, str]:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml", ".data"):
        return "yolo", f"{path.name} is YOLO's list of data"
    text = paths.read_text(path)
    start = text.lstrip()[:1]
    if not start:
        raise UserError(f"{path}: expected annotations, got an empty file")
    if start == "<":
        root = parse_xml(path)
        return _format_of_xml(root, path), f"{path.name} begins with <{root.tag}>"
    if start in "[{":
        return _format_of_json(path)
    header = csv_table.header_of(text)
    if "region_shape_attributes" in header:
        return "via", f"{path.name} has VIA's columns"
    if len(header) > 1:
        return "csv", f"{path.name} has {len(header)} columns"
    expected = "expected annotations of a known format"
    raise UserError(f"{path}: {expected}, got another file; --from names it")


def _format_of_xml(root: ElementTree.Element, path: Path) -> str:
    formats = {"annotation": "voc", "annotations": "cvat"}
    if root.tag not in formats:
        raise UserError(f"{path}: expected <annotation> or <annotations>, got <{root.tag}>")
    return formats[root.tag]


def _format_of_json(path: Path) -> tuple[str, str]:
    content = parse_json(path)
    if isinstance(content, dict) and {"images", "categories"} <= set(content):
        return "coco", f"{path.name} has images and categories"
    for name, is_this in (
        ("labelme", labelme.is_labelme),
        ("via", via.is_via),
        ("label-studio", label_studio.is_label_studio),
    ):
        if is_this(content):
            return name, f"{path.name} has {name}'s keys"
    got = "other keys" if content else "an empty list or object"
    raise UserError(f"{path}: expected JSON of a known format, got {got}; --from names it")
