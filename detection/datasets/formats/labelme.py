"""LabelMe's JSON, one file for each image: polygons, rectangles, circles and masks."""

import base64
import binascii
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from backbones.images import files_below
from detection.data.coco_json import is_number, shown
from detection.data.json_files import parse_json
from detection.datasets.formats.checking import CheckedDocument
from detection.datasets.formats.document import (
    Document,
    FoundImage,
    FoundObject,
    ReadOptions,
    Tally,
    WriteOptions,
)
from detection.datasets.formats.folders import (
    CLASSES_FILE,
    class_lines,
    classes_beside,
    json_text,
    output_names,
    write_folder,
)
from detection.datasets.formats.groups import Part, add_parts
from detection.datasets.formats.image_names import posix_name
from detection.datasets.formats.shapes import ellipse, enclosing_box, encode_mask, mask_window
from detection.datasets.voc import number_classes
from engine import paths
from engine.errors import UserError

VERSION = "5.5.0"
"""The version whose files are written."""
BAD_SHAPE = "bad shape"
WITHOUT_AREA = ("point", "points", "line", "linestrip")


def read(source: Path, options: ReadOptions) -> Document:
    """Read all LabelMe files below a folder, or one file.

    File names are relative to the folder; shapes of one class with the same `group_id` are one
    object.

    Raises:
        UserError: there is no such file.
    """
    folder = source if paths.is_folder(source) else source.parent
    names = files_below(source, ".json") if folder == source else [source.name]
    document = Document(root=folder)
    for name in options.log.progress(names, len(names), "reading annotations"):
        path = folder / name
        try:
            content = parse_json(path)
        except UserError as error:
            document.bad_images.append(shown(str(error)))
            continue
        if not is_labelme(content):
            document.dropped.add("JSON files that are not LabelMe's", name)
            continue
        document.images.append(_image_of(content, name, path, document))
    if not document.images and not document.bad_images:
        raise UserError(f"{source}: expected LabelMe's JSON files, got none")
    classes = classes_beside(folder, document.notes)
    document.classes = number_classes(classes) if classes else None
    return document


def is_labelme(content: Any) -> bool:
    """Return whether a JSON value is a file of LabelMe."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("shapes"), list)
        and isinstance(content.get("imagePath"), str)
    )


def _image_of(content: dict[str, Any], name: str, path: Path, document: Document) -> FoundImage:
    # imagePath is relative to the file; Windows writes backslashes
    given = content["imagePath"].replace("\\", "/")
    file_name = posix_name(posixpath.join(posixpath.dirname(name), given.lstrip("/")))
    height, width = content.get("imageHeight"), content.get("imageWidth")
    image = FoundImage(file_name)
    if type(height) is int and type(width) is int and min(height, width) > 0:
        image.size = height, width
    parts = []
    for number, shape in enumerate(content["shapes"], start=1):
        where = f"{path}: shape {number}"
        try:
            part = _part_of(shape, where, image.size, document)
        except ValueError as error:
            document.bad_objects.append((BAD_SHAPE, f"{where}: {error}"))
            continue
        if part is not None:
            parts.append(part)
    add_parts(image, parts, document)
    return image


def _part_of(
    shape: Any, where: str, size: tuple[int, int] | None, document: Document
) -> Part | None:
    """Return a shape, or None if it has no area; a ValueError says what is wrong with it."""
    if not isinstance(shape, dict):
        raise ValueError(f"expected an object, got {shape!r:.60}")
    label, kind = shape.get("label"), shape.get("shape_type") or "polygon"
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label: expected a class, got {label!r:.60}")
    label = label.strip()
    if kind in WITHOUT_AREA:
        document.dropped.add(f"shapes `{kind}`", where)
        return None
    flags = shape.get("flags") or {}
    part = Part(label, f"{where} ({shown(label)})", shape.get("group_id"))
    part.is_crowd = bool(flags.get("iscrowd")) if isinstance(flags, dict) else False
    points = _points_of(shape.get("points"))
    if kind == "polygon":
        if len(points) < 6:
            raise ValueError(f"points: expected three or more, got {len(points) // 2}")
        part.polygon = points
    elif kind == "rotation":
        document.changed.add("rotated boxes turned into their enclosing box", where)
        part.box = enclosing_box(points)
    elif kind == "rectangle" and len(points) in (4, 8):
        part.box = enclosing_box(points)
    elif kind == "circle" and len(points) == 4:
        document.changed.add("circles turned into polygons", where)
        radius = float(np.hypot(points[2] - points[0], points[3] - points[1]))
        part.polygon = ellipse((points[0], points[1]), (radius, radius), 0)
    elif kind == "mask" and len(points) == 4:
        if size is None:
            raise ValueError("mask: expected imageHeight and imageWidth in the file, got none")
        window = _decode_png(shape.get("mask"))
        left, top = round(min(points[::2])), round(min(points[1::2]))
        part.run_lengths = encode_mask(window, top=top, left=left, size=size)
    else:
        raise ValueError(f"expected a known shape_type and its points, got {kind!r:.60}")
    return part


def _points_of(value: Any) -> list[float]:
    """Return a list of [x, y] as a flat list."""
    good = isinstance(value, list) and all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
        for point in value
    )
    if not good or not value:
        raise ValueError(f"points: expected a list of [x, y], got {value!r:.60}")
    return [float(number) for point in value for number in point]


def _decode_png(value: Any) -> np.ndarray:
    """Return the mask (h, w) bool of a PNG in base64."""
    try:
        data = base64.b64decode(value, validate=False)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (TypeError, binascii.Error, ValueError, cv2.error) as error:
        raise ValueError(f"mask: expected a PNG in base64, got {value!r:.30}") from error
    if pixels is None:
        raise ValueError("mask: expected a PNG in base64, got something else")
    mask: np.ndarray = (pixels if pixels.ndim == 2 else pixels[..., :3].max(axis=2)) > 0
    return mask


def write(checked: CheckedDocument, output: Path, options: WriteOptions) -> list[str]:
    """Write one file for each image, with the image's own name as `imagePath`, and classes.txt.

    Nothing is dropped but flags `difficult`: parts of an object share a `group_id`, run lengths
    become masks, and crowds have the flag `iscrowd`. Boxes of objects with polygons are not
    written, because they follow from these.

    Raises:
        UserError: as for `write_folder`, or a file name leaves the folder.
    """
    dropped = Tally()
    named = output_names(checked.images, ".json")

    def files() -> Iterator[tuple[str, str]]:
        for image, name in options.log.progress(named, len(named), "writing"):
            yield name, json_text(_content_of(image, dropped))
        yield CLASSES_FILE, class_lines(checked)

    count = write_folder(output, files(), force=options.force)
    lines = [f"{output}: {count - 1} files; LabelMe opens them beside their images"]
    return lines + dropped.rows()


def _content_of(image: FoundImage, dropped: Tally) -> dict[str, Any]:
    assert image.size is not None
    shapes = []
    for number, found in enumerate(image.objects, start=1):
        if found.is_difficult:
            dropped.add("dropped, flags `difficult` of objects that are kept")
        group = number if len(found.polygons) > 1 else None
        for fields in _shapes_of(found, image.size):
            flags = {"iscrowd": True} if found.is_crowd else {}
            common = {"label": found.name, "group_id": group, "description": "", "flags": flags}
            shapes.append(common | {"mask": None} | fields)
    height, width = image.size
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": posixpath.basename(image.file_name),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _shapes_of(found: FoundObject, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    assert found.box is not None
    if found.polygons:
        for part in found.polygons:
            points = [list(point) for point in zip(part[::2], part[1::2], strict=True)]
            yield {"points": points, "shape_type": "polygon"}
        return
    if not found.run_lengths:
        x1, y1, x2, y2 = found.box
        yield {"points": [[x1, y1], [x2, y2]], "shape_type": "rectangle"}
        return
    window, top, left = mask_window(found.run_lengths, size)
    png = cv2.imencode(".png", window.astype(np.uint8) * 255)[1].tobytes()
    yield {
        "points": [[left, top], [left + window.shape[1] - 1, top + window.shape[0] - 1]],
        "shape_type": "mask",
        "mask": base64.b64encode(png).decode(),
    }
