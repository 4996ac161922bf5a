"""Checks of a document that was read: images, classes and boxes; bad ones stop or are dropped.

M objects. The result has every size, all coordinates in pixels, and a box for every object.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from backbones.images import BadImageError, read_size
from detection.data.box_checks import (
    NOT_FINITE,
    CheckedBoxes,
    check_boxes,
    describe_bad_box,
    find_bad_areas,
    format_size,
)
from detection.data.coco_json import has_control_characters, shown
from detection.datasets.formats.document import Box, Document, FoundImage, FoundObject
from detection.datasets.formats.image_names import ImageIndex
from detection.datasets.formats.shapes import enclosing_box, mask_box
from detection.datasets.voc import Category, number_classes
from engine.errors import UserError
from engine.log import RunLog
from engine.schema import BadInputPolicy

UNKNOWN_CLASS = "unknown class"
REPEATED = "images listed more than once"
SIZES_READ = "sizes read from the image"
CLASSES_SHOWN = 10
FAULTS_SHOWN = 10
"""Maximum number of faults that the error message names."""
LINES_SHOWN = 20
"""Maximum number of dropped objects and images that the console names."""


@dataclass(frozen=True)
class CheckedDocument:
    """Images and good objects, and a summary of what happened to the others.

    images: all have a size in pixels, their objects have boxes. classes: by name. rows: (what,
    count) for the console. dropped: a line for each bad object or image. examples: places of what
    was changed, or dropped because COCO does not have it.
    """

    root: Path
    images: list[FoundImage]
    classes: Mapping[str, Category]
    rows: list[tuple[str, int]]
    dropped: list[str]
    notes: list[str]
    examples: list[str]

    def table(self) -> Table:
        """Return the counts for the console."""
        table = Table(title="converted annotations", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for what, count in self.rows:
            table.add_row(what, str(count))
        return table

    def lines(self) -> list[str]:
        """Return notes, examples and the first dropped objects and images, one line each."""
        more = len(self.dropped) - LINES_SHOWN
        lines = [*self.notes, *self.examples, *self.dropped[:LINES_SHOWN]]
        return lines + ([f"... and {more} more"] if more > 0 else [])


class _Row(NamedTuple):
    """An object and its image."""

    found: FoundObject
    image: FoundImage


def check_document(
    document: Document,
    *,
    classes: Mapping[str, Category] | None = None,
    index: ImageIndex | None = None,
    on_bad_box: BadInputPolicy = "error",
    on_bad_image: BadInputPolicy = "error",
    log: RunLog | None = None,
) -> CheckedDocument:
    """Check a document; fill in sizes, boxes and classes.

    Args:
        document: its images are changed.
        classes: by name; None takes those of the document, or all names found, sorted.
        index: the images of a folder; file names become those of the folder. None keeps the names.
        on_bad_box: what to do with an object that could not be read, has no size, coordinates that
            are not finite, an impossible area, is outside its image, or of an unknown class: stop,
            or drop and count it. A box partly outside its image is counted and kept unchanged.
        on_bad_image: the same for missing or broken images and annotation files.
        log: shows the progress.

    Raises:
        UserError: data is bad and its policy is "error", or no image is left.
    """
    images = _with_sizes(document, index, log or RunLog(None, is_main=False))
    if on_bad_image == "error":
        _refuse(document.bad_images, "images", "--on-bad-image")
    if not images:
        raise UserError(f"{document.root}: expected images to convert, got none")
    rows = [_Row(found, image) for image in images for found in image.objects]
    if classes is None:
        classes = document.classes
    if classes is None:
        names = sorted({row.found.name for row in rows})
        classes = number_classes(name for name in names if not has_control_characters(name))
    for name in classes:
        if has_control_characters(name):
            raise UserError(
                f"{document.root}: class names: expected no control characters, got {name!r:.60}"
            )
    xywh = _boxes_of(rows)
    sizes = np.array([row.image.size for row in rows]).reshape(-1, 2)
    checked = check_boxes(xywh, sizes)
    bad = _bad_objects(rows, xywh, checked, classes)
    unread = [shown(message) for _, message in document.bad_objects]
    faults = unread + [shown(bad[row][1]) for row in sorted(bad)]
    if on_bad_box == "error":
        _refuse(faults, "objects", "--on-bad-box")
    kept = [row for row in range(len(rows)) if row not in bad]
    for image in images:
        image.objects = []
    for row in kept:
        rows[row].image.objects.append(rows[row].found)
    reasons = Counter(f"{why}: {rows[row].found.name}" for row, (why, _) in bad.items())
    reasons.update(why for why, _ in document.bad_objects)
    counts = [
        ("images", len(images)),
        ("images without objects", sum(not image.objects for image in images)),
        ("objects", len(kept)),
        ("objects with polygons", sum(bool(rows[row].found.polygons) for row in kept)),
        ("objects with masks", sum(bool(rows[row].found.run_lengths) for row in kept)),
        ("crowd regions among them", sum(rows[row].found.is_crowd for row in kept)),
        ("difficult objects among them", sum(rows[row].found.is_difficult for row in kept)),
        ("boxes partly outside their image", int(checked.clipped[kept].sum())),
        ("classes", len(classes)),
        *document.changed.counts.items(),
        ("images dropped", len(document.bad_images)),
        *((f"objects dropped, {why}", count) for why, count in sorted(reasons.items())),
        *((f"dropped, {why}", count) for why, count in document.dropped.counts.items()),
    ]
    always = ("images", "objects", "classes")  # the other rows only if their count is not 0
    return CheckedDocument(
        root=index.folder if index else document.root,
        images=images,
        classes=classes,
        rows=[row for row in counts if row[1] or row[0] in always],
        dropped=[*document.bad_images, *faults],
        notes=document.notes,
        examples=[
            *document.changed.lines(),
            *(f"dropped, {line}" for line in document.dropped.lines()),
        ],
    )


def _refuse(faults: Sequence[str], what: str, policy: str) -> None:
    """Raise UserError if there are faults (one line each), naming the first ones and the option."""
    if not faults:
        return
    if len(faults) == 1:
        raise UserError(f"{faults[0]}; {policy} skip drops it")
    more = len(faults) - FAULTS_SHOWN
    named = "; ".join(faults[:FAULTS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(f"{len(faults)} {what} cannot be converted: {named}; {policy} skip drops them")


def _with_sizes(document: Document, index: ImageIndex | None, log: RunLog) -> list[FoundImage]:
    """Return the images with name and size, each once; record a message for each bad one."""
    seen: dict[str, str] = {}  # name in the folder -> name in the source
    images = []
    for given in log.progress(document.images, len(document.images), "looking at images"):
        try:
            image = _located(given, document, index)
        except UserError as error:
            document.bad_images.append(shown(str(error)))
            continue
        if image.file_name not in seen:
            seen[image.file_name] = given.file_name
            images.append(image)
            continue
        first = seen[image.file_name]
        if first != given.file_name:
            what = f"both {shown(first)} and {shown(given.file_name)} mean it"
            document.bad_images.append(f"{shown(image.file_name)}: expected one image, but {what}")
            continue
        document.changed.add(REPEATED, shown(image.file_name))
        for found in given.objects:
            document.dropped.add("objects of an image that was read before", found.where)
    return images


def _located(image: FoundImage, document: Document, index: ImageIndex | None) -> FoundImage:
    """Return the image with its name in the folder and with its size."""
    name = image.file_name
    if index is not None:
        found = index.find(name, stem_only=image.stem_only)
        if found is None:
            raise BadImageError(
                f"{shown(name)}: expected such an image in {index.folder}, got none"
            )
        if found != name and not image.stem_only:
            document.changed.add("images found in another folder", f"{shown(name)}: {shown(found)}")
        name = found
    # Python decodes file names that are not UTF-8 to lone surrogates, which JSON cannot hold.
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise BadImageError(f"{shown(name)}: expected a file name in UTF-8, got another encoding")
    size = image.size
    if size is None:
        folder = index.folder if index else document.root
        try:
            size = read_size(folder / name)
        except UserError as error:
            hint = "the annotations have no size; --images DIR is the folder of the images"
            raise BadImageError(f"{error} ({hint})") from error
        document.changed.add(SIZES_READ)
    elif image.size_is_of_masks and index is not None:
        actual = read_size(index.folder / name)
        if actual != size:
            expected = f"expected masks of its size {format_size(actual)}"
            raise BadImageError(f"{shown(name)}: {expected}, got {format_size(size)}")
    located = replace(image, file_name=name, size=size, in_fractions=False, stem_only=False)
    if image.in_fractions:
        _to_pixels(located.objects, size)
    return located


def _to_pixels(objects: Sequence[FoundObject], size: tuple[int, int]) -> None:
    height, width = size
    for found in objects:
        if found.box is not None:
            x1, y1, x2, y2 = found.box
            found.box = x1 * width, y1 * height, x2 * width, y2 * height
        found.polygons = [
            [value * (height if place % 2 else width) for place, value in enumerate(part)]
            for part in found.polygons
        ]


def _boxes_of(rows: Sequence[_Row]) -> np.ndarray:
    """Return (M, 4) float64 xywh; objects without a box get that of their polygons or mask."""
    for found, image in rows:
        if found.box is None:
            found.box = _box_of_mask(found, image)
    corners = np.array([row.found.box for row in rows], np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):  # infinities; check_boxes finds them
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _box_of_mask(found: FoundObject, image: FoundImage) -> Box:
    if found.polygons:
        return enclosing_box([value for part in found.polygons for value in part])
    assert image.size is not None
    assert found.run_lengths
    return mask_box(found.run_lengths, image.size)


def _bad_objects(
    rows: Sequence[_Row],
    xywh: np.ndarray,
    checked: CheckedBoxes,
    classes: Mapping[str, Category],
) -> dict[int, tuple[str, str]]:
    """Return (reason, line for the console) for each bad object, by row."""
    bad = {}
    for reason, mask in checked.bad.items():
        for row in np.flatnonzero(mask).tolist():
            size = rows[row].image.size
            assert size is not None
            problem = describe_bad_box(xywh[row].tolist(), size, reason)
            bad[row] = (reason, f"{rows[row].found.where}: {problem}")
    areas = np.array([0.0 if found.area is None else found.area for found, _ in rows])
    bad_areas = find_bad_areas(areas)
    # an unknown class replaces another problem
    for row, (found, _) in enumerate(rows):
        if bad_areas[row]:
            problem = f"area: expected a finite number of at least 0, got {found.area}"
            bad.setdefault(row, ("impossible area", f"{found.where}: {problem}"))
        # the box of such a polygon may be finite: min and max skip a NaN that is not the first
        if not all(map(math.isfinite, (value for part in found.polygons for value in part))):
            problem = "expected finite numbers in a polygon, got others"
            bad.setdefault(row, (NOT_FINITE, f"{found.where}: {problem}"))
        if found.name not in classes:
            expected = f"a class such as {', '.join(list(classes)[:CLASSES_SHOWN])}"
            if has_control_characters(found.name):
                expected = "no control characters"
            problem = f"name: expected {expected}, got {found.name}"
            bad[row] = (UNKNOWN_CLASS, f"{found.where}: {problem}")
    return bad
