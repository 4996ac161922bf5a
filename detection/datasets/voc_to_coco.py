"""PASCAL VOC's annotations, and all of their kind, as one COCO document.

M objects. An XML file says which pixels a box covers, and there are two ways to say it:

- pixels: the first and the last pixel that belong to the object, counted from 1. VOC's way. The box
  is (xmin - 1, ymin - 1, xmax, ymax) in our frame, in which pixels have edges and a width of 1.
- corners: where the edges lie, in our frame already. The way of most labelling tools.

Which of them it is can often be told by the boxes at the border of their image.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.table import Table

from backbones.images import SUFFIXES, BadPictureError, read_size
from detection.data.box_checks import CheckedBoxes, check_boxes, describe_bad_box
from detection.data.coco_json import shown
from detection.datasets.voc import Category, ImageSet, number_classes
from detection.datasets.voc_xml import XmlObject, read_voc_xml
from engine import paths
from engine.errors import UserError
from engine.files import write_file
from engine.log import RunLog
from engine.schema import BadInputPolicy

BoxConvention = Literal["pixels", "corners"]

UNKNOWN_CLASS = "unknown class"
PICTURE_SUFFIXES = (".jpg", ".JPEG", *sorted({*SUFFIXES, *map(str.upper, SUFFIXES)}))
CLASSES_SHOWN = 10
FAULTS_SHOWN = 10
"""Of all that stops a conversion, so much is named."""
MORE_ONES = 20
"""Boxes from pixel 1 on for each from pixel 0 on, from which that is taken for a slip."""
LINES_SHOWN = 20
"""Of all that was dropped, so much is named on the console."""


@dataclass(frozen=True)
class Conversion:
    """A COCO document and how it came about.

    rows: (what, count) for the console. dropped: a line for each object or image dropped. decided:
    which convention of boxes was found and why; empty where it was given.
    """

    document: dict[str, Any]
    rows: list[tuple[str, int]]
    dropped: list[str]
    decided: str = ""

    def table(self) -> Table:
        """Return the counts for the console."""
        table = Table(title="what was read", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for what, count in self.rows:
            table.add_row(what, str(count))
        return table

    def lines(self) -> list[str]:
        """Return the convention found, and what was dropped, one line each, not without end."""
        more = len(self.dropped) - LINES_SHOWN
        lines = [self.decided] if self.decided else []
        lines += self.dropped[:LINES_SHOWN]
        return lines + ([f"... and {more} more"] if more > 0 else [])

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
    boxes: BoxConvention | None,
    on_bad_box: BadInputPolicy = "error",
    on_bad_image: BadInputPolicy = "error",
    log: RunLog | None = None,
) -> Conversion:
    """Make one COCO document of image sets.

    Args:
        root: to which file names will be relative.
        sets: one or more; a picture in several of them is taken once.
        classes: by the name that the XML files use; None takes those found, by the alphabet.
        boxes: what the corners in the files mean, see the top of this file; None lets the boxes
            tell (`tell_convention`).
        on_bad_box: what an object of no size, with numbers that are not finite, outside its
            picture, or of an unknown class does: stop, or get dropped and counted. A box partly
            outside is counted and stays as it is.
        on_bad_image: the same for a picture that is missing, and for broken or missing XML.
        log: shows how far the reading is.

    Raises:
        UserError: as the policies say, or no picture is left.
    """
    reading = _Reading()
    _read_sets(root, sets, reading, log or RunLog(None, is_main=False))
    if on_bad_image == "error":
        _refuse(reading.dropped, "images", "--on-bad-image")
    if not reading.images:
        raise UserError(f"{root}: expected pictures to convert, got none")
    if classes is None:
        classes = number_classes(sorted({each.found.name for each in reading.objects}))
    corners = np.array([each.found.corners for each in reading.objects], float).reshape(-1, 4)
    sides = [(each.image["height"], each.image["width"]) for each in reading.objects]
    sizes = np.array(sides).reshape(-1, 2)
    decided = ""
    if boxes is None:
        boxes, reason = tell_convention(corners, sizes)
        other = "pixels" if boxes == "corners" else "corners"
        decided = f"boxes are read as {boxes}: {reason}; --boxes {other} reads them otherwise"
    xywh = _boxes_of(corners, boxes)
    checked = check_boxes(xywh, sizes)
    bad = _bad_objects(reading.objects, xywh, checked, classes)
    faults = [shown(bad[row][1]) for row in sorted(bad)]
    if on_bad_box == "error":
        _refuse(faults, "objects", "--on-bad-box")
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
    told = [row for row in rows if row[1] or row[0] in ("pictures", "objects", "classes")]
    dropped = [*reading.dropped, *faults]
    return Conversion(document, told, dropped, decided)


def _refuse(faults: Sequence[str], what: str, policy: str) -> None:
    """Raise UserError where there are faults, each a line; it names several, and the policy."""
    if not faults:
        return
    if len(faults) == 1:
        raise UserError(f"{faults[0]}; {policy} skip drops it")
    more = len(faults) - FAULTS_SHOWN
    named = "; ".join(faults[:FAULTS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(f"{len(faults)} {what} cannot be converted: {named}; {policy} skip drops them")


def _annotation(each: _Object, box: list[float], classes: Mapping[str, Category]) -> dict[str, Any]:
    annotation = {
        "image_id": each.image["id"],
        "category_id": classes[each.found.name].category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }
    return annotation | ({"difficult": 1} if each.found.is_difficult else {})


def _read_sets(root: Path, sets: Sequence[ImageSet], reading: _Reading, log: RunLog) -> None:
    """Read all files in order, and say of each bad one why it is."""
    seen = set()
    files = [(image_set, name) for image_set in sets for name in image_set.names]
    for image_set, name in log.progress(files, len(files), "reading annotations"):
        stem = str(PurePosixPath(image_set.pictures) / name)
        reading.repeated += stem in seen
        if stem in seen:
            continue
        seen.add(stem)
        try:
            _add_picture(reading, root, stem, root / image_set.xml / f"{name}.xml")
        except UserError as error:
            reading.dropped.append(shown(str(error)))


def _add_picture(reading: _Reading, root: Path, stem: str, xml: Path) -> None:
    if any("\ud800" <= character <= "\udfff" for character in stem):
        raise BadPictureError(f"{root / stem}.*: expected a name in UTF-8, got one in another code")
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
        if paths.is_file(root / f"{stem}{suffix}"):
            return f"{stem}{suffix}"
    raise BadPictureError(f"{root / stem}.*: expected a picture of the XML file's name, got none")


def tell_convention(corners: np.ndarray, sizes: np.ndarray) -> tuple[BoxConvention, str]:
    """Return what corners mean, and what in them says so.

    No pixel that is counted from 1 is pixel 0, and none has a fraction. In either convention a box
    can reach the width or height of its image; with many that do, some would begin at 0 as edges.

    Args:
        corners: (M, 4) float64, as in the files; M may be 0.
        sizes: (M, 2) height and width of their images.
    """
    near, far, ends = corners[:, :2], corners[:, 2:], sizes[:, ::-1]
    from_0, from_1, to_end, before_end, broken = (
        int(mask.any(axis=1).sum())
        for mask in (
            (near >= 0) & (near < 1),
            near == 1,
            far == ends,
            far == ends - 1,
            np.isfinite(corners) & (corners != np.floor(corners)),
        )
    )
    if broken or from_0 * MORE_ONES > from_1:
        what = f"{from_0} begin at 0" if from_0 else f"{broken} have fractions of pixels"
        reason = f"of {len(corners)} boxes {what}, as pixels counted from 1 do not"
        if before_end and not to_end:
            reason += (
                f" (no box reaches its image's width or height, and {before_end} end a pixel"
                " before: if they end with their last pixel, they come out a pixel too small)"
            )
        return "corners", reason
    if from_0:
        return "pixels", f"{from_1} boxes begin at 1, and only {from_0} at 0"
    if to_end or from_1:
        ends_said = f"{from_1} of {len(corners)} boxes begin at 1 and {to_end} reach the width or"
        said = f"{ends_said} height of their image, and none begins at 0"
        return "pixels", f"{said} (nor does one of labelImg's, whose boxes are corners)"
    return "pixels", f"none of {len(corners)} boxes touches the border, so that this is VOC's way"


def _boxes_of(corners: np.ndarray, convention: BoxConvention) -> np.ndarray:
    """Return (M, 4) float64 xywh in our frame."""
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
