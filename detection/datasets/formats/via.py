"""VGG Image Annotator (VIA) 2: projects and annotations in JSON, and its CSV.

The class is one of the attributes of a region. Files have no image sizes; `width` and `height` in
the attributes of a file, which `write` puts there, are read.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
from detection.datasets.formats.folders import json_text
from detection.datasets.formats.image_names import posix_name
from detection.datasets.formats.shapes import ellipse, join_parts
from detection.datasets.voc import number_classes
from engine import paths
from engine.errors import UserError
from engine.files import write_file

CSV_HEADER = ("filename", "file_size", "file_attributes", "region_count", "region_id")
USUAL_ATTRIBUTES = ("class", "label", "name", "type", "category", "object")
"""Attributes that hold the class if there are several, in order of preference."""
WITHOUT_AREA = ("point", "polyline", "line")
CROWD = "iscrowd"
BAD_REGION = "bad region"


def read(source: Path, options: ReadOptions) -> Document:
    """Read a project, exported annotations, or a CSV.

    Raises:
        UserError: the file cannot be read, is VIA 3's, or the class attribute is not known.
    """
    document = Document(root=source.parent)
    attributes: dict[str, Any] = {}
    if source.suffix.lower() == ".csv":
        entries = _csv_entries(source)
    else:
        content = parse_json(source)
        if isinstance(content, dict) and {"project", "file", "metadata"} <= set(content):
            raise UserError(f"{source}: expected a file of VIA 2, got a project of VIA 3")
        entries, attributes = _json_entries(content, source)
    key = _class_attribute(entries, options, source)
    for entry in entries:
        name = entry["filename"]
        if "://" in name or name.startswith(("/", "\\")) or name[1:3] in (":\\", ":/"):
            name = posix_name(name.partition("?")[0]).rpartition("/")[2]
            document.changed.add("file names taken from a path or URL", entry["filename"])
        image = FoundImage(posix_name(name), _size_of(entry.get("file_attributes")))
        for number, region in enumerate(entry["regions"], start=1):
            where = f"{source}: image {shown(name)}: region {number}"
            try:
                found = _object_of(region, key, options.class_name, where, document)
            except ValueError as error:
                document.bad_objects.append((BAD_REGION, f"{where}: {error}"))
                continue
            if found is not None:
                image.objects.append(found)
        document.images.append(image)
    choices = attributes.get("region", {}).get(key or "", {}).get("options")
    used = {found.name for image in document.images for found in image.objects}
    if isinstance(choices, dict) and used <= set(choices):
        document.classes = number_classes(choices)
    return document


def is_via(content: Any) -> bool:
    """Return whether a JSON value is a project or the annotations of VIA 2."""
    if not isinstance(content, dict):
        return False
    if "_via_img_metadata" in content:
        return True
    values = list(content.values())[:3]
    return bool(values) and all(
        isinstance(each, dict) and {"filename", "regions"} <= set(each) for each in values
    )


def _json_entries(content: Any, source: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the checked entry of each image, regions as a list, and the project's attributes."""
    if not is_via(content):
        raise UserError(f"{source}: expected a project or annotations of VIA 2, got another JSON")
    attributes = content.get("_via_attributes")
    entries = []
    for key, entry in content.get("_via_img_metadata", content).items():
        regions = entry.get("regions") if isinstance(entry, dict) else None
        if isinstance(regions, dict):  # VIA 1: numbered "0", "1", ...
            regions = list(regions.values())
        if not isinstance(regions, list) or not isinstance(entry.get("filename"), str):
            raise UserError(f"{source}: {shown(key)}: expected filename and regions, got others")
        entries.append(entry | {"regions": regions})
    return entries, attributes if isinstance(attributes, dict) else {}


def _csv_entries(source: Path) -> list[dict[str, Any]]:
    """Return the same entries as `_json_entries` from a CSV: one line for each region."""
    reader = csv.reader(io.StringIO(paths.read_text(source), newline=""))
    header = [cell.lstrip("#").strip() for cell in next(reader, [])]
    wanted = (*CSV_HEADER, "region_shape_attributes", "region_attributes")
    if not set(wanted) <= set(header):
        raise UserError(f"{source}: expected columns {', '.join(wanted)}, got {header!r:.100}")
    images: dict[str, dict[str, Any]] = {}
    for cells in reader:
        if not any(cells):
            continue
        row = dict(zip(header, cells, strict=False))
        try:
            shape, region, file = (
                json.loads(row[key] or "{}") for key in (*wanted[-2:], "file_attributes")
            )
        except (KeyError, ValueError) as error:
            where = f"{source}: line {reader.line_num}"
            raise UserError(
                f"{where}: expected seven columns with JSON, got {error!r:.60}"
            ) from error
        entry = {"filename": row["filename"], "regions": [], "file_attributes": file}
        entry = images.setdefault(row["filename"], entry)
        if shape:
            entry["regions"].append({"shape_attributes": shape, "region_attributes": region})
    return list(images.values())


def _class_attribute(
    entries: list[dict[str, Any]], options: ReadOptions, source: Path
) -> str | None:
    """Return the attribute that holds the class; None if no region has attributes."""
    counts: Counter[str] = Counter()
    for entry in entries:
        for region in entry["regions"]:
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            counts.update(list(attributes) if isinstance(attributes, dict) else ())
    counts.pop(CROWD, None)
    if options.class_attribute is not None:
        if counts and options.class_attribute not in counts:
            got = f"{', '.join(counts)}"
            raise UserError(f"{source}: --class-attribute: expected one of {got}")
        return options.class_attribute
    if len(counts) <= 1:
        return next(iter(counts), None)
    for name in USUAL_ATTRIBUTES:
        found = [key for key in counts if key.lower() == name]
        if found:
            return found[0]
    got = ", ".join(map(shown, counts))
    raise UserError(
        f"{source}: expected one attribute with the class, got {got}; --class-attribute"
    )


def _size_of(attributes: Any) -> tuple[int, int] | None:
    if not isinstance(attributes, dict):
        return None
    sides = [str(attributes.get(key, "")) for key in ("height", "width")]
    if not all(side.isdecimal() and 0 < len(side) < 8 and int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _object_of(
    region: Any, key: str | None, default: str | None, where: str, document: Document
) -> FoundObject | None:
    """Return an object, or None if it has no area; a ValueError says what is wrong with it."""
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    attributes = region.get("region_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict) or not isinstance(attributes, dict):
        raise ValueError(f"expected shape_attributes and region_attributes, got {region!r:.60}")
    kind = shape.get("name")
    if kind in WITHOUT_AREA:
        document.dropped.add(f"regions `{kind}`", where)
        return None
    name = _class_of(attributes.get(key) if key else None, default, key)
    found = FoundObject(name, f"{where} ({shown(name)})")
    found.is_crowd = str(attributes.get(CROWD, "")).lower() in ("1", "true")
    if kind == "rect":
        x, y, width, height = _numbers(shape, "x", "y", "width", "height")
        found.box = x, y, x + width, y + height
    elif kind == "polygon":
        found.polygons = [_polygon_of(shape.get("all_points_x"), shape.get("all_points_y"))]
    elif kind in ("circle", "ellipse"):
        document.changed.add("circles and ellipses turned into polygons", where)
        sides = ("r", "r") if kind == "circle" else ("rx", "ry")
        x, y, *radii = _numbers(shape, "cx", "cy", *sides)
        # theta is in radians
        turn = float(shape.get("theta") or 0) * 57.29577951308232 if kind == "ellipse" else 0.0
        found.polygons = [ellipse((x, y), (radii[0], radii[1]), turn)]
    else:
        raise ValueError(f"expected a known shape, got {kind!r:.60}")
    return found


def _polygon_of(xs: Any, ys: Any) -> list[float]:
    are_lists = isinstance(xs, list) and isinstance(ys, list)
    if not are_lists or not 3 <= len(xs) == len(ys) or not all(map(is_number, xs + ys)):
        raise ValueError(f"expected a polygon of three points or more, got {xs!r:.40}")
    return [float(value) for point in zip(xs, ys, strict=True) for value in point]


def _numbers(shape: Mapping[str, Any], *keys: str) -> list[float]:
    values = [shape.get(key) for key in keys]
    if not all(map(is_number, values)):
        raise ValueError(f"expected numbers as {', '.join(keys)}, got {values!r:.60}")
    return [float(value) for value in values if value is not None]


def _class_of(value: Any, default: str | None, key: str | None) -> str:
    """Return the class; checkboxes hold a mapping of class to true."""
    if isinstance(value, dict):
        chosen = [name for name, is_set in value.items() if is_set]
        if len(chosen) > 1:
            raise ValueError(f"{key}: expected one class, got {', '.join(chosen):.60}")
        value = chosen[0] if chosen else None
    if isinstance(value, str) and value.strip():
        return value.strip()
    if is_number(value):
        return str(value)
    if default is None:
        what = f"attribute {key}" if key else "attribute"
        raise ValueError(f"expected a class in an {what}, got nothing; --class-name gives one")
    return default


def write(checked: CheckedDocument, output: Path, options: WriteOptions) -> list[str]:
    """Write a project of VIA 2, which its "Load" reads: rectangles and polygons.

    Parts of an object are joined to one polygon; masks become their boxes; both are counted.

    Raises:
        UserError: the file cannot be written.
    """
    changed = Tally()
    ordered = [each.name for each in sorted(checked.classes.values())]
    metadata = {f"{image.file_name}-1": _entry_of(image, changed) for image in checked.images}
    dropdown = {
        "type": "dropdown",
        "description": "",
        "options": dict.fromkeys(ordered, ""),
        "default_options": {},
    }
    text = {"type": "text", "description": "", "default_value": ""}
    project = {
        "_via_settings": {
            "ui": {
                "annotation_editor_height": 25,
                "annotation_editor_fontsize": 0.8,
                "leftsidebar_width": 18,
                "image_grid": {
                    "img_height": 80,
                    "rshape_fill": "none",
                    "rshape_fill_opacity": 0.3,
                    "rshape_stroke": "yellow",
                    "rshape_stroke_width": 2,
                    "show_region_shape": True,
                    "show_image_policy": "all",
                },
                "image": {"region_label": "class", "region_color": "class"},
            },
            "core": {"buffer_size": 18, "filepath": {}, "default_filepath": ""},
            "project": {"name": output.stem},
        },
        "_via_img_metadata": metadata,
        "_via_attributes": {
            "region": {"class": dropdown, CROWD: text},
            "file": {"width": text, "height": text},
        },
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(metadata),
    }
    paths.make_folder(output.parent)
    write_file(output, json_text(project))
    return [f"{output}: {len(metadata)} images", *changed.rows()]


def _entry_of(image: FoundImage, changed: Tally) -> dict[str, Any]:
    assert image.size is not None
    return {
        "filename": image.file_name,
        "size": -1,
        "regions": list(_regions(image, changed)),
        "file_attributes": {"width": str(image.size[1]), "height": str(image.size[0])},
    }


def _regions(image: FoundImage, changed: Tally) -> Iterator[dict[str, Any]]:
    for found in image.objects:
        assert found.box is not None
        attributes = {"class": found.name} | ({CROWD: "1"} if found.is_crowd else {})
        if found.is_difficult:
            changed.add("dropped, flags `difficult` of objects that are kept")
        if found.polygons:
            if len(found.polygons) > 1:
                changed.add("polygons of several parts joined to one", found.where)
            points = join_parts(found.polygons)
            shape: dict[str, Any] = {
                "name": "polygon",
                "all_points_x": points[::2],
                "all_points_y": points[1::2],
            }
        else:
            if found.run_lengths:
                changed.add("masks written as their boxes", found.where)
            x1, y1, x2, y2 = found.box
            sides = {"width": round(x2 - x1, 6), "height": round(y2 - y1, 6)}
            shape = {"name": "rect", "x": x1, "y": y1, **sides}
        yield {"shape_attributes": shape, "region_attributes": attributes}
