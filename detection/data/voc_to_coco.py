"""PASCAL VOC's annotations, and all of their kind, as one COCO document.

M objects. An XML file says which pixels a box covers, and there are two ways to say it:

- pixels: the first and the last pixel that belong to the object, counted from 1. VOC's way. The box
  is (xmin - 1, ymin - 1, xmax, ymax) in our frame, in which pixels have edges and a width of 1.
- corners: where the edges lie, in our frame already. The way of most labelling tools.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.table import Table

from backbones.pictures import SUFFIXES, BadPictureError, read_size
from detection.data.box_checks import CheckedBoxes, check_boxes, describe_bad_box
from detection.data.voc import Category, ImageSet, number_classes
from detection.data.voc_xml import BadXmlError, XmlObject, read_voc_xml
from engine.errors import UserError
from engine.files import write_file

BoxConvention = Literal["pixels", "corners"]
Policy = Literal["error", "skip"]

UNKNOWN_CLASS = "unknown class"
PICTURE_SUFFIXES = (".jpg", ".JPEG", *sorted({*SUFFIXES, *map(str.upper, SUFFIXES)}))
CLASSES_SHOWN = 10
LINES_SHOWN = 20
"""Of all that was dropped, so much is named on the console."""


@dataclass(frozen=True)
class Conversion:
    """A COCO document and how it came about.

    rows: (what, count) for the console. dropped: a line for each object or picture left out.
    """

    document: dict[str, Any]
    rows: list[tuple[str, int]]
    dropped: list[str]

    def table(self) -> Table:
        """Return the counts for the console."""
        table = Table(title="what was read", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for what, count in self.rows:
            table.add_row(what, str(count))
        return table

    def lines(self) -> list[str]:
        """Return what was dropped for the console, one line each, not without end."""
        more = len(self.dropped) - LINES_SHOWN
        return self.dropped[:LINES_SHOWN] + ([f"... and {more} more"] if more > 0 else [])

    def write(self, path: Path) -> None:
        """Write the document; its folder is made where it is missing.

        Raises:
            UserError: the disk refuses.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be made: {error.strerror}") from error
        write_file(path, json.dumps(self.document, ensure_ascii=False))


class _Object(NamedTuple):
    """An object, the entry of its picture, and its place for messages."""

    found: XmlObject
    image: dict[str, Any]
    where: str


@dataclass
class _Reading:
    """What the files hold, in their order."""

    images: list[dict[str, Any]] = field(default_factory=list)
    objects: list[_Object] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    repeated: int = 0
    filled_sizes: int = 0


def convert(
    root: Path,
    sets: Sequence[ImageSet],
    *,
    classes: Mapping[str, Category] | None,
    boxes: BoxConvention,
    on_bad_box: Policy = "error",
    on_bad_image: Policy = "error",
) -> Conversion:
    """Make one COCO document of image sets.

    Args:
        root: to which file names will be relative.
        sets: one or more; a picture in several of them is taken once.
        classes: by the name that the XML files use; None takes those found, by the alphabet.
        boxes: what the corners in the files mean; see the top of this file.
        on_bad_box: what an object of no size, with numbers that are not finite, outside its
            picture, or of an unknown class does: stop, or get dropped and counted. A box partly
            outside is counted and stays as it is.
        on_bad_image: the same for a picture that is missing, and for broken or missing XML.

    Raises:
        UserError: as the policies say, or no picture is left.
    """
    reading = _Reading()
    _read_sets(root, sets, reading, stop=on_bad_image == "error")
    if not reading.images:
        raise UserError(f"{root}: expected pictures to convert, got none")
    if classes is None:
        classes = number_classes(sorted({each.found.name for each in reading.objects}))
    xywh = _boxes_of(reading.objects, boxes)
    sizes = [(each.image["height"], each.image["width"]) for each in reading.objects]
    checked = check_boxes(xywh, np.array(sizes).reshape(-1, 2))
    bad = _bad_objects(reading.objects, xywh, checked, classes)
    if bad and on_bad_box == "error":
        raise UserError(bad[min(bad)][1])
    kept = [row for row in range(len(xywh)) if row not in bad]
    annotations = [
        {"id": number, **_annotation(reading.objects[row], xywh[row].tolist(), classes)}
        for number, row in enumerate(kept, start=1)
    ]
    with_objects = {each["image_id"] for each in annotations}
    reasons = Counter(f"{why}: {reading.objects[row].found.name}" for row, (why, _) in bad.items())
    rows = [
        ("pictures", len(reading.images)),
        ("pictures without objects", len(reading.images) - len(with_objects)),
        ("objects", len(annotations)),
        ("difficult objects among them", sum("difficult" in each for each in annotations)),
        ("boxes partly outside their picture", int(checked.clipped[kept].sum())),
        *_doubts(xywh[kept], boxes),
        ("classes", len(classes)),
        ("pictures listed more than once", reading.repeated),
        ("sizes filled in from the picture", reading.filled_sizes),
        ("pictures dropped", len(reading.dropped)),
        *((f"objects dropped, {why}", count) for why, count in sorted(reasons.items())),
    ]
    document = {
        "images": reading.images,
        "annotations": annotations,
        "categories": [{"id": each.category_id, "name": each.name} for each in classes.values()],
    }
    shown = [row for row in rows if row[1] or row[0] in ("pictures", "objects", "classes")]
    return Conversion(document, shown, reading.dropped + [bad[row][1] for row in sorted(bad)])


def _annotation(each: _Object, box: list[float], classes: Mapping[str, Category]) -> dict[str, Any]:
    annotation = {
        "image_id": each.image["id"],
        "category_id": classes[each.found.name].category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }
    return annotation | ({"difficult": 1} if each.found.is_difficult else {})


def _read_sets(root: Path, sets: Sequence[ImageSet], reading: _Reading, *, stop: bool) -> None:
    """Read all files in order; with `stop` the first bad one raises UserError."""
    seen = set()
    for image_set in sets:
        for name in image_set.names:
            stem = str(PurePosixPath(image_set.pictures) / name)
            reading.repeated += stem in seen
            if stem in seen:
                continue
            seen.add(stem)
            try:
                _add_picture(reading, root, stem, root / image_set.xml / f"{name}.xml")
            except (BadXmlError, BadPictureError) as error:
                if stop:
                    raise
                reading.dropped.append(str(error))


def _add_picture(reading: _Reading, root: Path, stem: str, xml: Path) -> None:
    annotation = read_voc_xml(xml)
    file_name = _picture_of(root, stem)
    height, width = annotation.size or read_size(root / file_name)
    reading.filled_sizes += annotation.size is None
    image_id = len(reading.images) + 1
    image = {"id": image_id, "file_name": file_name, "width": width, "height": height}
    reading.images.append(image)
    reading.objects += [
        _Object(found, image, f"{xml}: object {number} ({found.name})")
        for number, found in enumerate(annotation.objects, start=1)
    ]


def _picture_of(root: Path, stem: str) -> str:
    """Return the name of the picture, relative to `root`."""
    for suffix in PICTURE_SUFFIXES:
        if (root / f"{stem}{suffix}").is_file():
            return f"{stem}{suffix}"
    raise BadPictureError(f"{root / stem}.*: expected a picture of the XML file's name, got none")


def _boxes_of(objects: Sequence[_Object], convention: BoxConvention) -> np.ndarray:
    """Return (M, 4) float64 xywh in our frame."""
    corners = np.array([each.found.corners for each in objects], dtype=float).reshape(-1, 4)
    near = corners[:, :2] - (1 if convention == "pixels" else 0)
    return np.concatenate([near, corners[:, 2:] - near], axis=1)


def _doubts(xywh: np.ndarray, convention: BoxConvention) -> list[tuple[str, int]]:
    """Return counts of (N, 4) boxes that pixels counted from 1 cannot give, or hardly would."""
    if convention == "corners":
        return []
    return [
        ("boxes from pixel 0 and not 1: --boxes corners?", int((xywh[:, :2] < 0).any(1).sum())),
        ("boxes one pixel wide or high: --boxes corners?", int((xywh[:, 2:] == 1).any(1).sum())),
    ]


def _bad_objects(
    objects: Sequence[_Object],
    xywh: np.ndarray,
    checked: CheckedBoxes,
    classes: Mapping[str, Category],
) -> dict[int, tuple[str, str]]:
    """Return (reason, line for the console) of each bad object, by its row."""
    bad = {}
    for reason, mask in checked.bad.items():
        for row in np.flatnonzero(mask).tolist():
            size = objects[row].image["height"], objects[row].image["width"]
            problem = describe_bad_box(xywh[row].tolist(), size, reason)
            bad[row] = (reason, f"{objects[row].where}: {problem}")
    for row, (found, _, where) in enumerate(objects):
        if found.name not in classes:
            known = ", ".join(list(classes)[:CLASSES_SHOWN])
            problem = f"name: expected a class such as {known}, got {found.name}"
            bad[row] = (UNKNOWN_CLASS, f"{where}: {problem}")
    return bad
