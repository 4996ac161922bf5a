"""Label Studio's JSON and JSON-MIN: rectangles, ellipses, polygons and brush masks.

Coordinates are percentages of the image's sides. A rectangle turns around its top left corner.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from backbones.images import SUFFIXES
from detection.data.coco_json import MAX_PIXELS, is_number, shown
from detection.data.json_files import parse_json
from detection.datasets.formats.document import Document, FoundImage, FoundObject, ReadOptions
from detection.datasets.formats.image_names import ImageIndex, posix_name
from detection.datasets.formats.shapes import (
    box_points,
    ellipse,
    enclosing_box,
    encode_mask,
    rotate,
)
from engine.errors import UserError

KINDS = {
    "rectanglelabels": "rectangle",
    "polygonlabels": "polygon",
    "ellipselabels": "ellipse",
    "brushlabels": "brush",
    "keypointlabels": "keypoint",
}
"""Results that have a shape and its classes, and the result that has the shape alone."""
BAD_REGION = "bad region"
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the names of uploaded files."""


def read(source: Path, options: ReadOptions) -> Document:
    """Read the tasks of an export. Of several annotations of a task the newest is read.

    File names are derived from the URLs of the tasks; a note says how.

    Raises:
        UserError: the file is not a list of tasks.
    """
    document = Document(root=source.parent)
    content = parse_json(source)
    if not is_label_studio(content):
        raise UserError(f"{source}: expected a list of Label Studio's tasks, got others or none")
    index = ImageIndex(options.images) if options.images else None
    for number, task in enumerate(options.log.progress(content, len(content), "reading tasks")):
        where = f"{source}: task {task.get('id', number)}"
        url = _image_url(task)
        if url is None:
            document.bad_images.append(f"{where}: expected the URL of an image, got none")
            continue
        results = _results_of(task, where, document)
        try:
            name = _file_name(url, index)
        except UserError as error:  # several images fit
            document.bad_images.append(f"{where}: {error}")
            continue
        if name != url:
            document.changed.add("file names derived from URLs", f"{shown(url)}: {shown(name)}")
        image = FoundImage(name, _size_of(results))
        for position, result in enumerate(results, start=1):
            place = f"{where}: result {position}"
            try:
                image.objects += _objects_of(result, results, image, place, document)
            except ValueError as error:
                document.bad_objects.append((BAD_REGION, f"{place}: {error}"))
        image.in_fractions = image.size is None
        document.images.append(image)
    return document


def is_label_studio(content: Any) -> bool:
    """Return whether a JSON value is an export of Label Studio, JSON or JSON-MIN."""
    if not (isinstance(content, list) and content and all(isinstance(e, dict) for e in content)):
        return False
    first = content[0]
    if isinstance(first.get("data"), dict):
        return "annotations" in first or "completions" in first
    return _image_url(first) is not None and any(
        isinstance(value, list) and value and isinstance(value[0], dict) for value in first.values()
    ) | ("annotator" in first or "lead_time" in first)


def _image_url(task: dict[str, Any]) -> str | None:
    """Return the URL of a task's image: under a usual key, or any that ends as images do."""
    data = task.get("data", task)
    if not isinstance(data, dict):
        return None
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    for key in ("image", "img", "image_url", "url"):
        if key in texts:
            return texts[key]
    found = [value for value in texts.values() if urlsplit(value).path.lower().endswith(SUFFIXES)]
    return found[0] if found else None


def _file_name(url: str, index: ImageIndex | None) -> str:
    """Return the file name of a URL; with an index the form of it that is there.

    `/data/upload/1/1a2b3c4d-name.jpg` is name.jpg, `/data/local-files/?d=folder/name.jpg` is
    folder/name.jpg, `s3://bucket/folder/name.jpg` is folder/name.jpg, any other URL its last part.
    """
    parts = urlsplit(url)
    local = parse_qs(parts.query).get("d")
    if local:
        return posix_name(local[0])
    path = unquote(parts.path) if parts.scheme or parts.path.startswith("/data/") else url
    if parts.scheme in ("s3", "gs", "azure-blob"):
        return posix_name(path)
    if not parts.scheme and not path.startswith("/"):
        return posix_name(path)
    last = posix_name(path).rpartition("/")[2]
    if index is not None and index.find(last):
        return last
    return _UPLOAD.sub("", last, count=1) if "/upload/" in path else last


def _results_of(task: dict[str, Any], where: str, document: Document) -> list[dict[str, Any]]:
    """Return the results of the newest annotation of a task, in JSON's form."""
    if not isinstance(task.get("data"), dict):
        return list(_min_results(task))
    annotations = task.get("annotations") or task.get("completions") or []
    kept = [
        each
        for each in annotations
        if isinstance(each, dict) and not each.get("was_cancelled") and not each.get("skipped")
    ]
    for _ in annotations[len(kept) :]:
        document.dropped.add("cancelled annotations of a task", where)
    if not kept and task.get("predictions"):
        document.dropped.add("predictions of tasks without an annotation", where)
    for _ in kept[1:]:
        document.dropped.add("older annotations of a task that has several", where)
    if not kept:
        return []
    newest = max(kept, key=lambda each: str(each.get("updated_at") or each.get("created_at") or ""))
    results = newest.get("result")
    return [each for each in results if isinstance(each, dict)] if isinstance(results, list) else []


def _min_results(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the regions of a JSON-MIN task, which has them in one list for each control."""
    for value in task.values():
        for region in value if isinstance(value, list) else ():
            if isinstance(region, dict):
                kind = next((kind for kind in KINDS if kind in region), None)
                sides = {key: region.get(key) for key in ("original_width", "original_height")}
                yield {"type": kind or "other", "value": region} | sides


def _size_of(results: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    for result in results:
        sides = result.get("original_height"), result.get("original_width")
        if all(type(side) is int and side > 0 for side in sides):
            return sides[0], sides[1]  # type: ignore[return-value]
    return None


def _objects_of(
    result: dict[str, Any],
    results: Sequence[dict[str, Any]],
    image: FoundImage,
    where: str,
    document: Document,
) -> Iterator[FoundObject]:
    """Yield the object of a result, if it is one; a ValueError says what is wrong with it."""
    kind, value = result.get("type"), result.get("value")
    shape = KINDS.get(str(kind), kind)
    if shape not in KINDS.values():
        if kind != "labels":  # the classes of another result
            document.dropped.add(f"results `{kind}`", where)
        return
    if not isinstance(value, dict):
        raise ValueError(f"value: expected an object, got {value!r:.60}")
    if shape == "keypoint":
        document.dropped.add("key points", where)
        return
    names = _classes_of(result, results)
    if len(names) > 1:
        document.dropped.add("further classes of a region with several", where)
    found = FoundObject(names[0], f"{where} ({shown(names[0])})")
    # pixels if the size is known, else fractions
    height, width = image.size or (1, 1)
    scale = width / 100, height / 100
    if shape == "polygon":
        found.polygons = [_polygon_of(value.get("points"), scale)]
    elif shape == "brush":
        found.run_lengths = _mask_of(value.get("rle"), image.size)
    else:
        _add_rotated(found, str(shape), value, scale, document, is_square=image.size is not None)
    yield found


def _classes_of(result: dict[str, Any], results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the classes of a region: its own, or those of a `labels` result of the same id."""
    regions = [
        result,
        *(each for each in results if each.get("id") == result.get("id") is not None),
    ]
    for region in regions:
        value = region.get("value")
        for key in (*KINDS, "labels"):
            names = value.get(key) if isinstance(value, dict) else None
            if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
                return names
    raise ValueError("expected a class, got none")


def _polygon_of(points: Any, scale: tuple[float, float]) -> list[float]:
    good = isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
        for point in points
    )
    if not good or len(points) < 3:
        raise ValueError(f"points: expected three or more, got {points!r:.60}")
    return [value * scale[axis] for point in points for axis, value in enumerate(point)]


def _add_rotated(
    found: FoundObject,
    shape: str,
    value: dict[str, Any],
    scale: tuple[float, float],
    document: Document,
    *,
    is_square: bool,
) -> None:
    """Set the box of a rectangle, or the polygon of an ellipse."""
    keys = ("x", "y", "radiusX", "radiusY") if shape == "ellipse" else ("x", "y", "width", "height")
    numbers = [value.get(key) for key in keys]
    if not all(map(is_number, numbers)):
        raise ValueError(f"expected numbers as {', '.join(keys)}, got {numbers!r:.60}")
    x, y, across, down = (
        float(number or 0) * scale[place % 2] for place, number in enumerate(numbers)
    )
    turn = value.get("rotation") or 0
    if turn and not is_square:  # angles have a meaning in pixels only
        raise ValueError("rotation: expected original_width and original_height, got none")
    if shape == "ellipse":
        document.changed.add("ellipses turned into polygons", found.where)
        found.polygons = [ellipse((x, y), (across, down), turn)]
        return
    found.box = x, y, x + across, y + down
    if turn:
        document.changed.add("rotated boxes turned into their enclosing box", found.where)
        found.box = enclosing_box(rotate(box_points(found.box), turn, (x, y)))


def _mask_of(code: Any, size: tuple[int, int] | None) -> bytes:
    if size is None:
        raise ValueError("rle: expected original_width and original_height, got none")
    if not (isinstance(code, list) and all(type(e) is int and 0 <= e < 256 for e in code)):
        raise ValueError(f"rle: expected a list of bytes, got {code!r:.60}")
    height, width = size
    if height * width > MAX_PIXELS:
        raise ValueError("rle: expected an image, got more pixels than any has")
    pixels = decode_brush(bytes(code), count=height * width * 4)
    # the brush paints RGBA; its last channel is the mask
    mask = pixels.reshape(height, width, 4)[:, :, 3] > 0
    return encode_mask(mask, top=0, left=0, size=size)


def decode_brush(code: bytes, *, count: int) -> np.ndarray:
    """Return the values (count,) uint8 of a brush mask, in the packing of @thi.ng/rle-pack.

    Bits, highest first: 32 for the number of values, 5 for the bits of a value less 1, four times 4
    for widths of run lengths less 1. Then runs: 1 bit (equal values or not), 2 bits for one of the
    four widths, the length less 1, and one value or all of them.

    Raises:
        ValueError: the code is cut short, or has another number of values.
    """
    bits = "".join(f"{byte:08b}" for byte in code)
    place = 0

    def take(width: int) -> int:
        nonlocal place
        place += width
        if place > len(bits):
            raise ValueError("rle: expected more bytes, got a list that was cut short")
        return int(bits[place - width : place], 2)

    total, width = take(32), take(5) + 1
    if total != count or width > 8:
        raise ValueError(f"rle: expected {count} values of 8 bits, got {total} of {width}")
    lengths = [take(4) + 1 for _ in range(4)]
    values = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        is_run = take(1)
        end = min(done + take(lengths[take(2)]) + 1, count)
        values[done:end] = take(width) if is_run else [take(width) for _ in range(done, end)]
        done = end
    return values
