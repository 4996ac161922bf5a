"""CVAT's XML, "CVAT for images 1.1": boxes, polygons, ellipses and masks."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from detection.data.coco_json import MAX_PIXELS, shown
from detection.datasets.formats.checking import CheckedDocument
from detection.datasets.formats.document import (
    Document,
    FoundImage,
    FoundObject,
    ReadOptions,
    Tally,
    WriteOptions,
    choose_splits,
)
from detection.datasets.formats.folders import number_text
from detection.datasets.formats.groups import Part, add_parts
from detection.datasets.formats.image_names import posix_name
from detection.datasets.formats.shapes import (
    box_points,
    ellipse,
    enclosing_box,
    encode_mask,
    mask_window,
    rotate,
)
from detection.datasets.voc import number_classes
from detection.datasets.voc_xml import parse_xml
from engine import paths
from engine.errors import UserError
from engine.files import write_file

FILE = "annotations.xml"
"""Name of the file in an exported archive."""
CROWD = "is_crowd"
"""Attribute with which CVAT keeps COCO's flag when it imports COCO JSON."""
WITHOUT_AREA = ("polyline", "points", "tag", "skeleton", "cuboid")
BAD_SHAPE = "bad shape"


def read(source: Path, options: ReadOptions) -> Document:
    """Read annotations.xml, or the folder that has it; `z_order` has no meaning in COCO.

    Polygons and masks of one class with the same `group_id` are one object. A rotated box becomes
    its enclosing box.

    Raises:
        UserError: the file is not CVAT's, or is CVAT's format for videos.
    """
    path = source / FILE if paths.is_folder(source) else source
    root = parse_xml(path)
    if root.tag != "annotations":
        raise UserError(f"{path}: expected <annotations>, got <{root.tag}>")
    if root.find("track") is not None:
        expected = 'expected "CVAT for images 1.1", got "CVAT for video 1.1" with tracks'
        raise UserError(f"{path}: {expected}; export the task for images, one shape a frame")
    document = Document(root=path.parent)
    nodes = root.findall("image")
    subsets = sorted({node.get("subset") or "" for node in nodes})
    chosen = choose_splits(options.split, subsets, path)
    nodes = [node for node in nodes if (node.get("subset") or "") in chosen]
    for node in options.log.progress(nodes, len(nodes), "reading annotations"):
        try:
            document.images.append(_image_of(node, path, document))
        except ValueError as error:
            document.bad_images.append(shown(f"{path}: image {node.get('name')}: {error}"))
    labels = [label for label in root.iter("label") if label.find("parent") is None]
    names = dict.fromkeys((label.findtext("name") or "").strip() for label in labels)
    document.classes = number_classes(filter(None, names)) if any(names) else None
    return document


def _image_of(node: ElementTree.Element, path: Path, document: Document) -> FoundImage:
    name = node.get("name") or ""
    if not name:
        raise ValueError("name: expected a file name, got nothing")
    size = None
    if node.get("width") is not None:
        size = _whole(node, "height"), _whole(node, "width")
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"expected width and height of an image, got {size[1]}x{size[0]}")
    image = FoundImage(posix_name(name), size)
    parts = []
    for number, shape in enumerate(node, start=1):
        where = f"{path}: image {shown(name)}: shape {number}"
        if shape.tag in WITHOUT_AREA:
            document.dropped.add(f"shapes <{shape.tag}>", where)
            continue
        try:
            parts.append(_part_of(shape, where, size, document))
        except ValueError as error:
            document.bad_objects.append((BAD_SHAPE, f"{where}: {error}"))
    add_parts(image, parts, document, join_boxes=False)
    return image


def _whole(node: ElementTree.Element, key: str) -> int:
    text = node.get(key) or ""
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"{key}: expected a whole number, got {text!r:.30}")
    return int(text)


def _numbers(node: ElementTree.Element, *keys: str) -> list[float]:
    texts = [node.get(key) or "" for key in keys]
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"expected numbers as {', '.join(keys)}, got {texts!r:.60}") from error


def _part_of(
    node: ElementTree.Element, where: str, size: tuple[int, int] | None, document: Document
) -> Part:
    """Return a shape; a ValueError says what is wrong with it."""
    label = (node.get("label") or "").strip()
    if not label:
        raise ValueError("label: expected a class, got nothing")
    group = node.get("group_id") or None
    part = Part(label, f"{where} ({shown(label)})", None if group == "0" else group)
    attributes = {each.get("name"): (each.text or "").strip() for each in node.iter("attribute")}
    part.is_crowd = attributes.pop(CROWD, "").lower() == "true"
    for name in attributes:
        document.dropped.add(f"attributes `{shown(name or '')}`", where)
    turn = float(node.get("rotation") or 0)
    if node.tag == "box":
        x1, y1, x2, y2 = _numbers(node, "xtl", "ytl", "xbr", "ybr")
        part.box = x1, y1, x2, y2
        if turn:
            document.changed.add("rotated boxes turned into their enclosing box", where)
            centre = (x1 + x2) / 2, (y1 + y2) / 2
            part.box = enclosing_box(rotate(box_points(part.box), turn, centre))
    elif node.tag == "polygon":
        text = node.get("points") or ""
        points = text.replace(";", ",").split(",")
        if len(points) < 6 or len(points) % 2:
            raise ValueError(f"points: expected three or more, got {text!r:.60}")
        part.polygon = [float(value) for value in points]
    elif node.tag == "ellipse":
        document.changed.add("ellipses turned into polygons", where)
        x, y, rx, ry = _numbers(node, "cx", "cy", "rx", "ry")
        part.polygon = ellipse((x, y), (rx, ry), turn)
    elif node.tag == "mask":
        part.run_lengths = _mask_of(node, size)
    else:
        raise ValueError(f"expected a known shape, got <{node.tag}>")
    return part


def _mask_of(node: ElementTree.Element, size: tuple[int, int] | None) -> bytes:
    """Return COCO's run lengths of CVAT's: rows of a window, zeros first, separated by commas."""
    if size is None:
        raise ValueError("mask: expected width and height of the image, got none")
    left, top, width, height = (_whole(node, key) for key in ("left", "top", "width", "height"))
    text = node.get("rle") or ""
    counts = np.array([int(each) for each in text.split(",")], np.int64)
    if counts.min() < 0 or counts.sum() != width * height or width * height > MAX_PIXELS:
        raise ValueError(f"rle: expected runs of {width}x{height} pixels, got {text!r:.40}")
    values = np.arange(len(counts)) % 2 == 1  # every second run is of ones
    window = np.repeat(values, counts).reshape(height, width)
    return encode_mask(window, top=top, left=left, size=size)


def write(checked: CheckedDocument, output: Path, options: WriteOptions) -> list[str]:
    """Write one XML file that CVAT imports as "CVAT 1.1".

    Nothing is dropped but flags `difficult`: parts of an object share a `group_id`, and crowds have
    the attribute `is_crowd`. Boxes of objects with polygons or masks follow from these.

    Raises:
        UserError: the file cannot be written.
    """
    dropped = Tally()
    ordered = [each.name for each in sorted(checked.classes.values())]
    attribute = (
        f"<attribute><name>{CROWD}</name><mutable>False</mutable><input_type>checkbox</input_type>"
        "<default_value>false</default_value><values>false</values></attribute>"
    )
    labels = "".join(
        f"        <label><name>{escape(name)}</name><type>any</type>"
        f"<attributes>{attribute}</attributes></label>\n"
        for name in ordered
    )
    images = options.log.progress(checked.images, len(checked.images), "writing")
    body = "".join(
        f"  <image id={quoteattr(str(number))} name={quoteattr(image.file_name)} "
        f'width="{image.size[1]}" height="{image.size[0]}">\n'
        f"{''.join(_shapes(image, dropped))}  </image>\n"
        for number, image in enumerate(images)
        if image.size is not None
    )
    text = (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta>\n    <task>\n      <name>{escape(output.stem)}</name>\n"
        f"      <size>{len(checked.images)}</size>\n      <mode>annotation</mode>\n"
        f"      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n{body}</annotations>\n"
    )
    paths.make_folder(output.parent)
    write_file(output, text)
    return [f"{output}: {len(checked.images)} images", *dropped.rows()]


def _shapes(image: FoundImage, dropped: Tally) -> Iterator[str]:
    assert image.size is not None
    for number, found in enumerate(image.objects, start=1):
        if found.is_difficult:
            dropped.add("dropped, flags `difficult` of objects that are kept")
        group = f' group_id="{number}"' if len(found.polygons) > 1 else ""
        common = f'label={quoteattr(found.name)} source="manual" occluded="0"{group} z_order="0"'
        crowd = f'<attribute name="{CROWD}">true</attribute>' if found.is_crowd else ""
        for tag, fields in _tags(found, image.size):
            yield f"    <{tag} {common} {fields}>{crowd}</{tag}>\n"


def _tags(found: FoundObject, size: tuple[int, int]) -> Iterator[tuple[str, str]]:
    assert found.box is not None
    for part in found.polygons:
        texts = list(map(number_text, part))
        points = ";".join(f"{x},{y}" for x, y in zip(texts[::2], texts[1::2], strict=True))
        yield "polygon", f'points="{points}"'
    if found.polygons:
        return
    if not found.run_lengths:
        sides = zip(("xtl", "ytl", "xbr", "ybr"), found.box, strict=True)
        yield "box", " ".join(f'{side}="{number_text(value)}"' for side, value in sides)
        return
    window, top, left = mask_window(found.run_lengths, size)
    flat = window.ravel()
    bounds = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    counts = np.diff(np.concatenate([[0], bounds, [flat.size]])).tolist()
    runs = [0, *counts] if flat.size and flat[0] else counts
    place = f'left="{left}" top="{top}" width="{window.shape[1]}" height="{window.shape[0]}"'
    yield "mask", f'rle="{", ".join(map(str, runs))}" {place}'
