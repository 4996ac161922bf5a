"""Instance masks as PNG files of 8 or 16 bits: 0 is background, each other value an object.

The class of an object is, in this order: what instances.json says, the folder of the file
(`CLASS/IMAGE.png`), the end of its name (`IMAGE__CLASS.png`), or `--class-name`. With `--semantic`
values are numbers of classes, and each connected region is an object.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from backbones.images import MAX_PIXELS, BadImageError, files_below, read_file
from detection.data.coco_json import shown
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
from detection.datasets.formats.shapes import encode_mask, merge_masks
from detection.datasets.voc import number_classes
from detection.ops import rle
from engine import paths
from engine.errors import UserError

MAP_FILE = "instances.json"
"""{"masks": {"a.png": {"image": "a.jpg", "classes": {"1": "cat"}}}}; `image` is optional."""
VOID = 255
"""Value of pixels without a class in PASCAL VOC's 8-bit masks."""
SEPARATOR = "__"


@dataclass(frozen=True)
class _Place:
    """What a file's path and the map say: its image, and the class of its values."""

    image: str
    stem_only: bool
    by_value: dict[int, str]
    name: str | None


def read(source: Path, options: ReadOptions) -> Document:
    """Read all PNG files below a folder; those of one image are joined.

    Raises:
        UserError: there is no PNG, or the images or classes are not known.
    """
    if not paths.is_folder(source):
        raise UserError(f"{source}: expected a folder of PNG masks, got a file or nothing")
    names = files_below(source, ".png")
    if not names:
        raise UserError(f"{source}: expected PNG masks, got none")
    document = Document(root=source)
    known = _read_map(source)
    listed = options.classes or classes_beside(source, document.notes)
    if options.semantic and not listed:
        raise UserError(f"{source}: --semantic: expected the class of value 1, 2, ... in --names")
    images: dict[str, FoundImage] = {}
    for name in options.log.progress(names, len(names), "reading masks"):
        try:
            place = _place_of(name, known, options)
            values = read_values(source / name)
            size = values.shape[0], values.shape[1]
            image = FoundImage(place.image, size, stem_only=place.stem_only, size_is_of_masks=True)
            image = images.setdefault(place.image, image)
            if image.size != size:
                raise BadImageError(
                    f"{source / name}: expected the size of the image's other masks"
                )
            where = f"{source / name}"
            if options.semantic:
                _add_regions(image, values, list(listed or ()), where, document)
            else:
                gaps = options.instances
                _add_instances(image, values, place, where, document, has_gaps=gaps)
        except UserError as error:
            document.bad_images.append(shown(str(error)))
    document.images = list(images.values())
    document.classes = number_classes(listed) if listed else None
    if options.images is None and any(image.stem_only for image in document.images):
        raise UserError(f"{source}: expected --images DIR, the images that the masks belong to")
    return document


def _read_map(source: Path) -> dict[str, Any]:
    path = source / MAP_FILE
    if not paths.is_file(path):
        return {}
    content = parse_json(path)
    masks = content.get("masks") if isinstance(content, dict) else None
    if not isinstance(masks, dict) or not all(isinstance(each, dict) for each in masks.values()):
        raise UserError(f"{path}: expected masks: an object for each file, got {content!r:.60}")
    return masks


def _place_of(name: str, known: dict[str, Any], options: ReadOptions) -> _Place:
    """Return what is known of a file: from the map, its folder, its name, or the option."""
    stem = name.rpartition(".")[0]
    if name in known:
        entry = known[name]
        classes = entry.get("classes", {})
        try:
            by_value = {int(value): str(label) for value, label in classes.items()}
        except (AttributeError, ValueError) as error:
            raise BadImageError(
                f"{name}: expected classes by value, got {classes!r:.60}"
            ) from error
        image = entry.get("image")
        if isinstance(image, str):
            return _Place(image, stem_only=False, by_value=by_value, name=options.class_name)
        return _Place(stem, stem_only=True, by_value=by_value, name=options.class_name)
    folder, _, last = stem.rpartition("/")
    before, found, label = last.rpartition(SEPARATOR)
    if found and before and label and options.class_name is None and not options.semantic:
        image = f"{folder}/{before}".lstrip("/")
        return _Place(image, stem_only=True, by_value={}, name=label)
    if folder and options.class_name is None and not options.semantic:
        above, _, label = folder.rpartition("/")
        return _Place(f"{above}/{last}".lstrip("/"), stem_only=True, by_value={}, name=label)
    return _Place(stem, stem_only=True, by_value={}, name=options.class_name)


def read_values(path: Path) -> np.ndarray:
    """Return the values (H, W) of a PNG: grey levels, or indices into its palette.

    Raises:
        UserError: it cannot be opened, is not a PNG, or has several channels.
    """
    from PIL import Image  # comes with torchvision; OpenCV would replace indices by colours

    data = read_file(path)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{path}: expected at most {MAX_PIXELS} pixels, got more")
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                what = f"one of {image.mode}: colours of classes?"
                raise BadImageError(f"{path}: expected a PNG of one channel, got {what}")
            values: np.ndarray = np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise BadImageError(f"{path}: expected a whole PNG, got one that cannot be read") from error
    return values


def _add_instances(
    image: FoundImage,
    values: np.ndarray,
    place: _Place,
    where: str,
    document: Document,
    *,
    has_gaps: bool,
) -> None:
    """Add an object for each value; values with gaps may be classes, unless `has_gaps`."""
    assert image.size is not None
    found = [value for value in np.unique(values).tolist() if value]
    is_void = not has_gaps and VOID not in place.by_value and len(found) != VOID
    if is_void and VOID in found and len(found) > 1:
        document.changed.add(f"masks with void pixels (value {VOID})", where)
        found.remove(VOID)
    if not (has_gaps or place.by_value) and found != list(range(1, len(found) + 1)):
        got = ", ".join(map(str, found[:8]))
        raise BadImageError(
            f"{where}: expected objects numbered 1, 2, ..., got values {got}: numbers of classes? "
            "--semantic splits each class into connected regions; --instances takes each value "
            "for an object"
        )
    for value in found:
        name = place.by_value.get(value, place.name)
        if name is None:
            sources = f"{MAP_FILE}, a folder or file name with the class, or --class-name"
            raise BadImageError(f"{where}: value {value}: expected a class from {sources}")
        image.objects.append(
            _object_of(values == value, image.size, name, f"{where}: value {value}")
        )


def _add_regions(
    image: FoundImage, values: np.ndarray, names: list[str], where: str, document: Document
) -> None:
    """Add each connected region of each class; values 1, 2, ... are the names in order."""
    assert image.size is not None
    for value in np.unique(values).tolist():
        if value in (0, VOID):
            continue
        if value > len(names):
            expected = f"expected a class from 1 to {len(names)}"
            raise BadImageError(f"{where}: {expected}, got the value {value}")
        count, regions = cv2.connectedComponents((values == value).astype(np.uint8), connectivity=8)
        document.changed.add("classes split into connected regions", where)
        for region in range(1, count):
            place = f"{where}: value {value}, region {region}"
            found = _object_of(regions == region, image.size, names[value - 1], place)
            image.objects.append(found)


def _object_of(mask: np.ndarray, size: tuple[int, int], name: str, where: str) -> FoundObject:
    code = encode_mask(mask, top=0, left=0, size=size)
    return FoundObject(name, f"{where} ({shown(name)})", run_lengths=code)


def write(checked: CheckedDocument, output: Path, options: WriteOptions) -> list[str]:
    """Write a PNG for each image, instances.json and classes.txt.

    Later objects cover earlier ones. Crowd regions and objects without a mask are dropped; both are
    counted.

    Raises:
        UserError: as for `write_folder`, or no object has a mask.
    """
    dropped = Tally()
    named = output_names(checked.images, ".png")
    if not any(
        found.polygons or found.run_lengths for image in checked.images for found in image.objects
    ):
        raise UserError(
            f"{output}: expected objects with polygons or masks to write, got only boxes"
        )
    masks: dict[str, Any] = {}

    def files() -> Iterator[tuple[str, bytes | str]]:
        for image, name in options.log.progress(named, len(named), "writing"):
            content, classes = _png_of(image, dropped)
            masks[name] = {"image": image.file_name, "classes": classes}
            yield name, content
        yield MAP_FILE, json_text({"masks": masks})
        yield CLASSES_FILE, class_lines(checked)

    count = write_folder(output, files(), force=options.force)
    return [f"{output}: {count - 2} masks, {MAP_FILE} and {CLASSES_FILE}", *dropped.rows()]


def _png_of(image: FoundImage, dropped: Tally) -> tuple[bytes, dict[str, str]]:
    """Return a PNG, and the class of each of its values."""
    assert image.size is not None
    values = np.zeros(image.size, np.uint16)
    classes: dict[str, str] = {}
    pixels = []
    for found in image.objects:
        if found.is_crowd:
            dropped.add("dropped, crowd regions, which masks do not have", found.where)
        elif not found.polygons and not found.run_lengths:
            dropped.add("dropped, objects without a mask", found.where)
        elif len(classes) == 65535:
            raise UserError(f"{shown(image.file_name)}: expected at most 65535 objects, got more")
        else:
            code = found.run_lengths or merge_masks(found.polygons, [], image.size)
            mask = rle.decode(code, image.size)
            classes[str(len(classes) + 1)] = found.name
            values[mask] = len(classes)
            pixels.append((int(mask.sum()), found.where))
    visible = np.bincount(values.ravel(), minlength=len(classes) + 1)[1:].tolist()
    for (before, where), after in zip(pixels, visible, strict=True):
        if after < before:
            dropped.add("objects partly covered by later ones", where)
        if not after:
            dropped.add("dropped, objects without a visible pixel", where)
    kind = np.uint8 if len(classes) < 255 else np.uint16
    return cv2.imencode(".png", values.astype(kind))[1].tobytes(), classes
