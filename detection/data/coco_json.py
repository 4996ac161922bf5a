"""Parser of COCO JSON files: checks each key and returns the values as arrays.

N images, M annotations. coco.py checks that the arrays are consistent with each other.
"""

import unicodedata
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detection.data.json_files import json_kind, parse_json, without_garbage_collection
from detection.data.segmentations import ByteStrings, Segmentations, SegmentationsBuilder
from engine.errors import UserError

MAX_SIDE, MAX_PIXELS = 1 << 20, 1 << 30
"""Maximum side and number of pixels of an image: OpenCV does not decode larger ones."""


def parse_coco(path: Path) -> dict[str, Any]:
    """Return the file's object and check that its three COCO keys contain lists of objects.

    COCO's files of images without annotations lack that key; the list is then empty.

    Raises:
        UserError: the file cannot be read, or is not of this form.
    """
    document = parse_json(path)
    keys = ("images", "annotations", "categories")
    if not isinstance(document, dict):
        got = json_kind(document)
        raise UserError(f"{path}: expected a COCO object with {', '.join(keys)}, got {got}")
    if "images" in document and "categories" in document:
        document.setdefault("annotations", [])
    for key in keys:
        if not isinstance(document.get(key), list):
            got = json_kind(document[key]) if key in document else "nothing"
            raise UserError(f"{path}: {key}: expected a list, got {got}")
        for position, entry in enumerate(document[key]):
            if not isinstance(entry, dict):
                raise UserError(f"{path}: {key}[{position}]: expected an object, got {entry!r:.60}")
    return document


def int_of(entry: dict[str, Any], key: str, where: str, *, positive: bool = False) -> int:
    """Return the integer under `key`; the message of a UserError begins with `where`."""
    value = entry.get(key)
    # `type`, not isinstance: True and False are instances of int. Arrays hold 64-bit integers.
    if type(value) is not int or abs(value) >= 2**63 or (positive and value < 1):
        expected = "a positive integer" if positive else "an integer"
        got = f"{value!r:.60}" if key in entry else "nothing"
        raise UserError(f"{where}: {key}: expected {expected}, got {got}")
    return value


def name_of(entry: dict[str, Any], key: str, where: str) -> str:
    """Return the non-empty string under `key`; the message of a UserError begins with `where`."""
    value = entry.get(key)
    if not isinstance(value, str) or not _is_text(value):
        got = f"{value!r:.60}" if key in entry else "nothing"
        raise UserError(f"{where}: {key}: expected a name, got {got}")
    return value


def image_name(entry: dict[str, Any]) -> str | None:
    """Return an image's `file_name`, None if it has none.

    Without that key it is the last two parts of `coco_url`, the only name in LVIS's files:
    "train2017/000000391895.jpg", which is relative to the folder that contains train2017/.
    """
    name, url = entry.get("file_name"), entry.get("coco_url")
    if "file_name" not in entry and isinstance(url, str):
        name = "/".join(url.split("/")[-2:])
    return name if isinstance(name, str) and _is_text(name) else None


def image_name_of(entry: dict[str, Any], where: str) -> str:
    """Return what `image_name` does; the message of a UserError begins with `where`."""
    name = image_name(entry)
    return name_of(entry, "file_name", where) if name is None else name


def size_of(entry: dict[str, Any], where: str) -> tuple[int, int]:
    """Return an image's (height, width); the message of a UserError begins with `where`."""
    height, width = (int_of(entry, key, where, positive=True) for key in ("height", "width"))
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise UserError(
            f"{where}: expected a side of at most {MAX_SIDE} pixels and {MAX_PIXELS} in total,"
            f" got {width}x{height} (width x height)"
        )
    return height, width


def class_name_of(entry: dict[str, Any], where: str) -> str:
    """Return the class name under `name`; the message of a UserError begins with `where`.

    Names are printed, drawn and written to files, so line breaks and terminal control codes are
    refused.
    """
    name = name_of(entry, "name", where)
    if has_control_characters(name):
        raise UserError(f"{where}: name: expected no control characters, got {name!r:.60}")
    return name


def has_control_characters(text: str) -> bool:
    """Return whether a text contains line breaks or terminal control codes."""
    kinds = {unicodedata.category(character) for character in text if not character.isprintable()}
    # Unicode categories: control, surrogate, line separator, paragraph separator
    return bool(kinds & {"Cc", "Cs", "Zl", "Zp"})


def shown(name: str) -> str:
    """Return a name for a message, with control characters escaped."""
    return repr(name)[1:-1] if has_control_characters(name) else name


def _is_text(value: str) -> bool:
    try:
        return bool(value.encode())
    except UnicodeEncodeError:  # a lone surrogate: JSON can escape it, UTF-8 cannot encode it
        return False


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number that fits an array; NaN and infinities do."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def box_of(entry: dict[str, Any], where: str) -> list[float]:
    """Return the four numbers under `bbox`, finite or not; a UserError begins with `where`."""
    box: Any = entry.get("bbox")
    if isinstance(box, list) and len(box) == 4:
        # four floats are the usual case, which the first line tells in half of the time
        is_box = type(box[0]) is type(box[1]) is type(box[2]) is type(box[3]) is float
        if is_box or all(map(is_number, box)):
            return box
    got = f"{box!r:.60}" if "bbox" in entry else "nothing"
    raise UserError(f"{where}: bbox: expected four numbers [x, y, width, height], got {got}")


def check_unique(values: np.ndarray, what: str, path: Path) -> None:
    """Raise UserError if a value of `values` (count,) is repeated."""
    unique, counts = np.unique(values, return_counts=True)
    if len(unique) != len(values):
        twice = unique[counts > 1][0]
        raise UserError(f"{path}: {what}: expected each one once, got {twice} more than once")


def check_any(count: int, purpose: str, path: Path) -> None:
    """Raise UserError if no annotation is left for a purpose."""
    if not count:
        raise UserError(f"{path}: annotations: expected at least one {purpose}, got none")


def read_categories(entries: list[dict[str, Any]], path: Path) -> list[tuple[int, str]]:
    """Check `categories` and return (id, name) pairs in ascending order of id."""
    pairs = sorted(
        (int_of(entry, "id", where), class_name_of(entry, where))
        for position, entry in enumerate(entries)
        for where in [f"{path}: categories[{position}]"]  # binds a name in the comprehension
    )
    if not pairs:
        raise UserError(f"{path}: categories: expected at least one, got none")
    check_unique(np.array([key for key, _ in pairs]), "category ids", path)
    check_unique(np.array([name for _, name in pairs]), "category names", path)
    return pairs


@dataclass(frozen=True)
class ImageTable:
    """The `images` of a file: ids (N,) int64, names N in UTF-8, sizes (N, 2) (height, width).

    If names or sizes were not requested, an image may have an empty name, or the size (0, 0).
    """

    ids: np.ndarray
    names: ByteStrings
    sizes: np.ndarray


def read_images(
    entries: list[dict[str, Any]],
    path: Path,
    *,
    need_names: bool = True,
    need_sizes: bool | Literal["if any"] = True,
) -> ImageTable:
    """Check `images` and return them as arrays; a UserError names the first bad entry.

    Args:
        entries: the images of the file.
        path: the file, for messages.
        need_names: whether each image must have a name; if not, messages give its id.
        need_sizes: whether to read sizes, which each image must have then. "if any": read those
            that are there.
    """
    # typed arrays ("q": int64) in place of lists take 8 bytes per number and become numpy arrays
    # without a copy
    ids, sizes, names = array("q"), array("q"), []
    for position, entry in enumerate(entries):
        where = f"{path}: images[{position}]"
        name = image_name(entry)
        if need_names:
            name = image_name_of(entry, where)
            where = f"{path}: image {shown(name)}"
        ids.append(int_of(entry, "id", where))
        size_from = where if need_names else f"{path}: image {ids[-1]}"
        size = (0, 0)
        if need_sizes == "if any":
            with suppress(UserError):
                size = size_of(entry, size_from)
        elif need_sizes:
            size = size_of(entry, size_from)
        sizes.extend(size)
        names.append(b"" if name is None else name.encode())
    if not ids:
        raise UserError(f"{path}: images: expected at least one, got none")
    images = ImageTable(
        ids=np.frombuffer(ids, np.int64),
        names=ByteStrings.of(names),
        sizes=np.frombuffer(sizes, np.int64).reshape(-1, 2),
    )
    check_unique(images.ids, "image ids", path)
    return images


@dataclass(frozen=True)
class AnnotationTable:
    """The `annotations` of a file in file order: (M,) arrays, xywh (M, 4) float64.

    areas: float64; the box's area if the file has none (`lacks_area`). is_crowd: False if the file
    has no value (`lacks_iscrowd`). unreadable_masks, dropped_mask_parts: counts of `segmentation`
    values, and of parts of polygon lists, that were dropped.
    """

    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray
    is_ignored: np.ndarray
    lacks_area: np.ndarray
    lacks_iscrowd: np.ndarray
    unreadable_masks: int
    dropped_mask_parts: int
    segmentations: Segmentations


def read_annotations(
    entries: Iterable[dict[str, Any]],
    path: Path,
    *,
    sizes: Mapping[int, Sequence[int]],
    skip: Callable[[int], None] | None = None,
) -> AnnotationTable:
    """Check the entries of `annotations` one by one and return them as arrays.

    Args:
        entries: the annotations of the file; may be empty.
        path: the file, for messages.
        sizes: (height, width) by image id; an RLE of an image without a size is unreadable.
        skip: called with the position of each bad entry, which is then skipped; None stops there.

    Raises:
        UserError: names the first bad entry, if `skip` is None.
    """
    # "q" int64, "d" float64, "b" one byte per flag, which numpy reads as bool below
    ids, image_ids, category_ids = array("q"), array("q"), array("q")
    xywh, areas = array("d"), array("d")
    is_crowd, is_difficult, is_ignored = array("b"), array("b"), array("b")
    lacks_area, lacks_iscrowd = array("b"), array("b")
    packer = SegmentationsBuilder()
    for position, entry in enumerate(entries):
        try:
            key, image_id, category_id = (
                int_of(entry, "id", ""),
                int_of(entry, "image_id", ""),
                int_of(entry, "category_id", ""),
            )
            box = box_of(entry, "")
            area, crowd = area_of(entry, ""), flag_of(entry, "iscrowd", "")
            difficult, ignored = flag_of(entry, "difficult", ""), flag_of(entry, "ignore", "")
        except UserError as error:
            if skip is None:
                raise UserError(f"{_place_of(entry, position, path)}{error}") from None
            skip(position)
            continue
        ids.append(key)
        image_ids.append(image_id)
        category_ids.append(category_id)
        xywh.extend(box)
        lacks_area.append(area is None)
        lacks_iscrowd.append(crowd is None)
        areas.append(box[2] * box[3] if area is None else area)
        is_crowd.append(crowd or 0)
        is_difficult.append(difficult or 0)
        is_ignored.append(ignored or 0)
        packer.add(entry.get("segmentation"), sizes.get(image_id, (0, 0)))
    return AnnotationTable(
        ids=np.frombuffer(ids, np.int64),
        image_ids=np.frombuffer(image_ids, np.int64),
        category_ids=np.frombuffer(category_ids, np.int64),
        xywh=np.frombuffer(xywh, np.float64).reshape(-1, 4),
        areas=np.frombuffer(areas, np.float64),
        is_crowd=np.frombuffer(is_crowd, np.bool_),
        is_difficult=np.frombuffer(is_difficult, np.bool_),
        is_ignored=np.frombuffer(is_ignored, np.bool_),
        lacks_area=np.frombuffer(lacks_area, np.bool_),
        lacks_iscrowd=np.frombuffer(lacks_iscrowd, np.bool_),
        unreadable_masks=packer.num_unreadable,
        dropped_mask_parts=packer.num_dropped_parts,
        segmentations=packer.pack(),
    )


@dataclass(frozen=True)
class Tables:
    """The content of a COCO file. categories: (id, name) in ascending order of id."""

    categories: list[tuple[int, str]]
    images: ImageTable
    annotations: AnnotationTable


@without_garbage_collection()
def read_tables(
    path: Path, *, need_names: bool = True, need_sizes: bool | Literal["if any"] = True
) -> Tables:
    """Parse and check a COCO file; a UserError gives the place and the problem.

    Args:
        path: the file.
        need_names: as for `read_images`.
        need_sizes: as for `read_images`; unless it is True, RLE masks count as unreadable.
    """
    document = parse_coco(path)
    categories = read_categories(document["categories"], path)
    images = read_images(document["images"], path, need_names=need_names, need_sizes=need_sizes)
    sizes = {}
    if need_sizes is True:  # RLE masks are read for them alone
        sizes = dict(zip(images.ids.tolist(), images.sizes.tolist(), strict=True))
    annotations = read_annotations(document["annotations"], path, sizes=sizes)
    check_unique(annotations.ids, "annotation ids", path)
    return Tables(categories, images, annotations)


def _place_of(entry: dict[str, Any], position: int, path: Path) -> str:
    """Return the place of a bad annotation for a message: its id, if that is an integer."""
    try:
        return f"{path}: annotation {int_of(entry, 'id', '')}"
    except UserError:
        return f"{path}: annotations[{position}]"


def area_of(entry: dict[str, Any], where: str) -> float | None:
    """Return the number under `area`, None if the key is missing or null; may be infinite."""
    area: float | None = entry.get("area")
    if area is not None and not is_number(area):
        raise UserError(f"{where}: area: expected a number, got {area!r:.60}")
    return area


def flag_of(entry: dict[str, Any], key: str, where: str) -> int | None:
    """Return the 0 or 1 under `key`, None if the key is missing or null."""
    # true and false pass as well: they equal 1 and 0
    value = entry.get(key)
    if value not in (0, 1, None):
        raise UserError(f"{where}: {key}: expected 0 or 1, got {value!r:.60}")
    return None if value is None else int(value)
