"""Conversion of PASCAL VOC's XML annotations to COCO JSON.

M objects. There are two conventions for the coordinates in XML files:

- pixels: the first and the last pixel of the object, counted from 1. VOC's convention. In COCO's
  coordinates, in which pixels have a width of 1, the box is (xmin - 1, ymin - 1, xmax, ymax).
- corners: the edges of the box in COCO's coordinates. The convention of most labelling tools.

The boxes at the border of their image often show which convention a data set uses.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.table import Table

from backbones.images import SUFFIXES, BadImageError, read_size
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
# in the order in which they are tried: the usual suffixes of VOC and ILSVRC first
IMAGE_SUFFIXES = (".jpg", ".JPEG", *sorted({*SUFFIXES, *map(str.upper, SUFFIXES)}))
CLASSES_SHOWN = 10
FAULTS_SHOWN = 10
"""Maximum number of faults that the error message names."""
ONES_PER_ZERO = 20
"""If at least this many boxes begin at 1 for each box that begins at 0, the zeros are mistakes."""
LINES_SHOWN = 20
"""Maximum number of dropped objects and images that the console names."""


@dataclass(frozen=True)
class Conversion:
    """A COCO document and a summary of its conversion.

    rows: (what, count) for the console. dropped: a line for each dropped object or image.
    convention_note: the detected box convention and the reason; empty if the user gave it.
    """

    document: dict[str, Any]
    rows: list[tuple[str, int]]
    dropped: list[str]
    convention_note: str = ""

    def table(self) -> Table:
        """Return the counts for the console."""
        table = Table(title="converted annotations", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for what, count in self.rows:
            table.add_row(what, str(count))
        return table

    def lines(self) -> list[str]:
        """Return the detected convention and the first dropped objects, one line each."""
        more = len(self.dropped) - LINES_SHOWN
        lines = [self.convention_note] if self.convention_note else []
        lines += self.dropped[:LINES_SHOWN]
        return lines + ([f"... and {more} more"] if more > 0 else [])

    def write(self, path: Path) -> None:
        """Write the document; create its folder if it is missing.

        Raises:
            UserError: the file or its folder cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be created: {error.strerror}") from error
        write_file(path, json.dumps(self.document, ensure_ascii=False))


class _Object(NamedTuple):
    """An object, the COCO entry of its image, and its location for messages."""

    found: XmlObject
    image: dict[str, Any]
    where: str


@dataclass
class _Contents:
    """The contents of the XML files read so far, in their order.

    images: COCO's entries. dropped: error messages of bad images. num_repeated: images listed more
    than once. num_filled_sizes: sizes that were read from the image because the XML has none.
    """

    images: list[dict[str, Any]] = field(default_factory=list)
    objects: list[_Object] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    num_repeated: int = 0
    num_filled_sizes: int = 0


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
    """Convert image sets to one COCO document.

    Args:
        root: folder to which file names in the document are relative.
        sets: one or more; an image in several of them is converted once.
        classes: by the name in the XML files; None takes all names found, sorted.
        boxes: convention of the coordinates in the files, see the top of this module; None detects
            it (`detect_convention`).
        on_bad_box: what to do with an object of zero size, with coordinates that are not finite,
            outside its image, or of an unknown class: stop, or drop and count it. A box partly
            outside its image is counted and kept unchanged.
        on_bad_image: the same for a missing image, and for broken or missing XML.
        log: shows the progress.

    Raises:
        UserError: data is bad and its policy is "error", or no image is left.
    """
    contents = _Contents()
    _read_sets(root, sets, contents, log or RunLog(None, is_main=False))
    if on_bad_image == "error":
        _refuse(contents.dropped, "images", "--on-bad-image")
    if not contents.images:
        raise UserError(f"{root}: expected images to convert, got none")
    if classes is None:
        classes = number_classes(sorted({each.found.name for each in contents.objects}))
    # (M, 4) corners as in the files, (M, 2) sizes of the objects' images
    corners = np.array([each.found.corners for each in contents.objects], float).reshape(-1, 4)
    sides = [(each.image["height"], each.image["width"]) for each in contents.objects]
    sizes = np.array(sides).reshape(-1, 2)
    note = ""
    if boxes is None:
        boxes, reason = detect_convention(corners, sizes)
        other = "pixels" if boxes == "corners" else "corners"
        note = f"boxes are read as {boxes}: {reason}; --boxes {other} overrides this"
    xywh = _to_xywh(corners, boxes)
    checked = check_boxes(xywh, sizes)
    bad = _bad_objects(contents.objects, xywh, checked, classes)
    faults = [shown(bad[row][1]) for row in sorted(bad)]
    if on_bad_box == "error":
        _refuse(faults, "objects", "--on-bad-box")
    # ids are assigned after dropping, so they are consecutive
    kept = [row for row in range(len(xywh)) if row not in bad]
    annotations = [
        {"id": number, **_annotation(contents.objects[row], xywh[row].tolist(), classes)}
        for number, row in enumerate(kept, start=1)
    ]
    with_objects = {each["image_id"] for each in annotations}
    reasons = Counter(f"{why}: {contents.objects[row].found.name}" for row, (why, _) in bad.items())
    rows = [
        ("images", len(contents.images)),
        ("images without objects", len(contents.images) - len(with_objects)),
        ("objects", len(annotations)),
        ("difficult objects among them", sum("difficult" in each for each in annotations)),
        ("boxes partly outside their image", int(checked.clipped[kept].sum())),
        *_suspicious_boxes(xywh[kept], boxes),
        ("classes", len(classes)),
        ("images listed more than once", contents.num_repeated),
        ("sizes read from the image", contents.num_filled_sizes),
        ("images dropped", len(contents.dropped)),
        *((f"objects dropped, {why}", count) for why, count in sorted(reasons.items())),
    ]
    document = {
        "images": contents.images,
        "annotations": annotations,
        "categories": [{"id": each.category_id, "name": each.name} for each in classes.values()],
    }
    always = ("images", "objects", "classes")  # the other rows only if their count is not 0
    shown_rows = [row for row in rows if row[1] or row[0] in always]
    dropped = [*contents.dropped, *faults]
    return Conversion(document, shown_rows, dropped, note)


def _refuse(faults: Sequence[str], what: str, policy: str) -> None:
    """Raise UserError if there are faults (one line each), naming the first ones and the option."""
    if not faults:
        return
    if len(faults) == 1:
        raise UserError(f"{faults[0]}; {policy} skip drops it")
    more = len(faults) - FAULTS_SHOWN
    named = "; ".join(faults[:FAULTS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(f"{len(faults)} {what} cannot be converted: {named}; {policy} skip drops them")


def _annotation(each: _Object, box: list[float], classes: Mapping[str, Category]) -> dict[str, Any]:
    """Return the COCO annotation of an object, without `id`; box is xywh."""
    annotation = {
        "image_id": each.image["id"],
        "category_id": classes[each.found.name].category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }
    return annotation | ({"difficult": 1} if each.found.is_difficult else {})


def _read_sets(root: Path, sets: Sequence[ImageSet], contents: _Contents, log: RunLog) -> None:
    """Read all files in order; record an error message for each bad one."""
    seen = set()
    files = [(image_set, name) for image_set in sets for name in image_set.names]
    for image_set, name in log.progress(files, len(files), "reading annotations"):
        # path of the image without its suffix; identifies the image across sets
        stem = str(PurePosixPath(image_set.images) / name)
        contents.num_repeated += stem in seen
        if stem in seen:
            continue
        seen.add(stem)
        try:
            _add_image(contents, root, stem, root / image_set.xml / f"{name}.xml")
        except UserError as error:
            contents.dropped.append(shown(str(error)))


def _add_image(contents: _Contents, root: Path, stem: str, xml: Path) -> None:
    # Python decodes file names that are not UTF-8 to lone surrogates, which JSON cannot hold.
    if any("\ud800" <= character <= "\udfff" for character in stem):
        raise BadImageError(f"{root / stem}.*: expected a file name in UTF-8, got another encoding")
    annotation = read_voc_xml(xml)
    file_name = _find_image(root, stem)
    height, width = annotation.size or read_size(root / file_name)
    contents.num_filled_sizes += annotation.size is None
    image_id = len(contents.images) + 1
    image = {"id": image_id, "file_name": file_name, "width": width, "height": height}
    contents.images.append(image)
    contents.objects += [
        _Object(found, image, f"{xml}: object {number} ({found.name})")
        for number, found in enumerate(annotation.objects, start=1)
    ]


def _find_image(root: Path, stem: str) -> str:
    """Return the file name of the image, relative to `root`."""
    for suffix in IMAGE_SUFFIXES:
        if paths.is_file(root / f"{stem}{suffix}"):
            return f"{stem}{suffix}"
    raise BadImageError(f"{root / stem}.*: expected an image with the XML file's name, got none")


def detect_convention(corners: np.ndarray, sizes: np.ndarray) -> tuple[BoxConvention, str]:
    """Detect the convention of a data set's boxes, see the top of this module.

    Coordinates of pixels that are counted from 1 are never 0 and have no fraction, so such
    coordinates mean corners. In both conventions a box can end at the width or height of its image;
    but if many boxes do and they were corners, some boxes would also begin at 0.

    Args:
        corners: (M, 4) float64, unchanged from the files; M may be 0.
        sizes: (M, 2) height and width of their images.

    Returns:
        the convention, and the reason as a clause for the console.
    """
    # ends: width and height, the largest possible x2 and y2
    near, far, ends = corners[:, :2], corners[:, 2:], sizes[:, ::-1]
    # Numbers of boxes with such a coordinate, in x or in y. A NaN compares as False.
    from_0, from_1, to_end, before_end, fractional = (
        int(mask.any(axis=1).sum())
        for mask in (
            (near >= 0) & (near < 1),
            near == 1,
            far == ends,
            far == ends - 1,
            np.isfinite(corners) & (corners != np.floor(corners)),
        )
    )
    # A few zeros among many ones are mistakes of the annotators.
    if fractional or from_0 * ONES_PER_ZERO > from_1:
        what = f"{from_0} begin at 0" if from_0 else f"{fractional} have fractions of pixels"
        reason = f"of {len(corners)} boxes {what}, which pixels counted from 1 cannot have"
        if before_end and not to_end:
            reason += (
                f" (no box reaches its image's width or height, and {before_end} end one pixel"
                " before it: if the files give the last pixel, the boxes are a pixel too small)"
            )
        return "corners", reason
    if from_0:
        return "pixels", f"{from_1} boxes begin at 1, and only {from_0} at 0"
    if to_end or from_1:
        counts = f"{from_1} of {len(corners)} boxes begin at 1 and {to_end} reach the width or"
        reason = f"{counts} height of their image, and none begins at 0"
        return "pixels", f"{reason} (but labelImg writes corners, and never a 0)"
    return "pixels", f"none of {len(corners)} boxes touches the border; pixels is VOC's convention"


def _to_xywh(corners: np.ndarray, convention: BoxConvention) -> np.ndarray:
    """Return (M, 4) float64 xywh in COCO's coordinates."""
    # "pixels": the first pixel is counted from 1, so its left edge is at xmin - 1; the right edge
    # of the last pixel is at xmax.
    near = corners[:, :2] - (1 if convention == "pixels" else 0)
    return np.concatenate([near, corners[:, 2:] - near], axis=1)


def _suspicious_boxes(xywh: np.ndarray, convention: BoxConvention) -> list[tuple[str, int]]:
    """Count boxes (N, 4) that are impossible or unlikely if the convention is "pixels"."""
    if convention == "corners":
        return []
    return [
        (
            "boxes that begin at pixel 0, not 1: --boxes corners?",
            int((xywh[:, :2] < 0).any(1).sum()),
        ),
        ("boxes one pixel wide or high: --boxes corners?", int((xywh[:, 2:] == 1).any(1).sum())),
    ]


def _bad_objects(
    objects: Sequence[_Object],
    xywh: np.ndarray,
    checked: CheckedBoxes,
    classes: Mapping[str, Category],
) -> dict[int, tuple[str, str]]:
    """Return (reason, line for the console) for each bad object, by row."""
    bad = {}
    for reason, mask in checked.bad.items():
        for row in np.flatnonzero(mask).tolist():
            size = objects[row].image["height"], objects[row].image["width"]
            problem = describe_bad_box(xywh[row].tolist(), size, reason)
            bad[row] = (reason, f"{objects[row].where}: {problem}")
    # an unknown class replaces a problem of the box
    for row, (found, _, where) in enumerate(objects):
        if found.name not in classes:
            known = ", ".join(list(classes)[:CLASSES_SHOWN])
            problem = f"name: expected a class such as {known}, got {found.name}"
            bad[row] = (UNKNOWN_CLASS, f"{where}: {problem}")
    return bad
