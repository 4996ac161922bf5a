"""Conversion of PASCAL VOC's XML annotations to COCO JSON.

M objects. There are two conventions for the coordinates in XML files:

- pixels: the first and the last pixel of the object, counted from 1. VOC's convention. In COCO's
  coordinates, in which pixels have a width of 1, the box is (xmin - 1, ymin - 1, xmax, ymax).
- corners: the edges of the box in COCO's coordinates. The convention of most labelling tools.

The boxes at the border of their image often show which convention a data set uses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from backbones.images import SUFFIXES, BadImageError, read_size
from detection.data.coco_json import shown
from detection.datasets.formats.checking import (
    REPEATED,
    SIZES_READ,
    CheckedDocument,
    check_document,
)
from detection.datasets.formats.coco import to_coco, write
from detection.datasets.formats.document import (
    BoxConvention,
    Document,
    FoundImage,
    FoundObject,
    WriteOptions,
)
from detection.datasets.formats.image_names import ImageIndex, posix_name
from detection.datasets.voc import Category, ImageSet
from detection.datasets.voc_xml import XmlAnnotation, read_voc_xml
from engine import paths
from engine.errors import UserError
from engine.log import RunLog
from engine.schema import BadInputPolicy

# in the order in which they are tried: the usual suffixes of VOC and ILSVRC first
IMAGE_SUFFIXES = (".jpg", ".JPEG", *sorted({*SUFFIXES, *map(str.upper, SUFFIXES)}))
ONES_PER_ZERO = 20
"""If at least this many boxes begin at 1 for each box that begins at 0, the zeros are mistakes."""


@dataclass(frozen=True)
class Conversion:
    """A COCO document, and the checked images and objects that it was made from."""

    document: dict[str, Any]
    checked: CheckedDocument

    def write(self, path: Path) -> None:
        """Write the document; create its folder if it is missing.

        Raises:
            UserError: the file or its folder cannot be written.
        """
        write(self.checked, path, WriteOptions())


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
        on_bad_box: as for `check_document`.
        on_bad_image: as for `check_document`.
        log: shows the progress.

    Raises:
        UserError: data is bad and its policy is "error", or no image is left.
    """
    log = log or RunLog(None, is_main=False)
    document = read_image_sets(root, sets, boxes=boxes, log=log)
    checked = check_document(
        document, classes=classes, on_bad_box=on_bad_box, on_bad_image=on_bad_image
    )
    return Conversion(to_coco(checked), checked)


def read_image_sets(
    root: Path,
    sets: Sequence[ImageSet],
    *,
    boxes: BoxConvention | None,
    images: Path | None = None,
    index: ImageIndex | None = None,
    with_images: bool = True,
    log: RunLog,
) -> Document:
    """Read image sets; broken files and missing images are recorded in the document.

    Args:
        root: folder of the XML files, and of the images.
        sets: one or more; an image in several of them is read once.
        boxes: as for `convert`.
        images: another root of the images; file names are relative to it.
        index: the images below `images`, to find those in another folder too.
        with_images: False takes the file names that the XML files contain, and looks for no image.
        log: shows the progress.
    """
    document = Document(root=images or root)
    seen = set()
    files = [(image_set, name) for image_set in sets for name in image_set.names]
    for image_set, name in log.progress(files, len(files), "reading annotations"):
        # path of the image without its suffix; identifies the image across sets
        stem = str(PurePosixPath(image_set.images) / name)
        if stem in seen:
            document.changed.add(REPEATED)
            continue
        seen.add(stem)
        try:
            xml = root / image_set.xml / f"{name}.xml"
            annotation = read_voc_xml(xml)
            if with_images:
                file_name = _find_image(document, stem, index)
            else:
                file_name = _name_in_xml(annotation, stem, xml)
            _add_image(document, file_name, annotation, xml)
        except UserError as error:
            document.bad_images.append(shown(str(error)))
    _convert_boxes(document, boxes)
    return document


def _add_image(document: Document, file_name: str, annotation: XmlAnnotation, xml: Path) -> None:
    size = annotation.size or read_size(document.root / file_name)
    if annotation.size is None:
        document.changed.add(SIZES_READ)
    objects = [
        FoundObject(
            found.name,
            f"{xml}: object {number} ({found.name})",
            found.corners,
            is_difficult=found.is_difficult,
        )
        for number, found in enumerate(annotation.objects, start=1)
    ]
    document.images.append(FoundImage(file_name, size, objects))


def _find_image(document: Document, stem: str, index: ImageIndex | None) -> str:
    """Return the file name of the image, relative to the root of the document."""
    # Python decodes file names that are not UTF-8 to lone surrogates, which JSON cannot hold.
    where = f"{document.root / stem}.*"
    if any("\ud800" <= character <= "\udfff" for character in stem):
        raise BadImageError(f"{where}: expected a file name in UTF-8, got another encoding")
    for suffix in IMAGE_SUFFIXES:
        if paths.is_file(document.root / f"{stem}{suffix}"):
            return f"{stem}{suffix}"
    found = index.find(stem, stem_only=True) if index else None
    if found is None:
        raise BadImageError(f"{where}: expected an image with the XML file's name, got none")
    document.changed.add("images found in another folder", f"{shown(stem)}: {shown(found)}")
    return found


def _name_in_xml(annotation: XmlAnnotation, stem: str, xml: Path) -> str:
    """Return the file name that an XML file contains, in the folder of the image set."""
    name = posix_name(annotation.file_name).rpartition("/")[2]
    if not annotation.file_name or annotation.size is None:
        lacking = "size" if annotation.file_name else "filename"
        raise BadImageError(f"{xml}: {lacking}: got nothing; --images DIR is the folder of images")
    return str(PurePosixPath(stem).parent / name)


def _convert_boxes(document: Document, boxes: BoxConvention | None) -> None:
    """Turn the corners as in the files into boxes in COCO's coordinates."""
    found = [(each, image.size) for image in document.images for each in image.objects]
    # (M, 4) corners as in the files, (M, 2) sizes of the objects' images
    corners = np.array([each.box for each, _ in found], float).reshape(-1, 4)
    sizes = np.array([size for _, size in found]).reshape(-1, 2)
    if boxes is None:
        boxes, reason = detect_convention(corners, sizes)
        other = "pixels" if boxes == "corners" else "corners"
        note = f"boxes are read as {boxes}: {reason}; --boxes {other} overrides this"
        document.notes.append(note)
    if boxes == "corners":
        return
    for each, _ in found:
        assert each.box is not None
        x1, y1, x2, y2 = each.box
        # The first pixel is counted from 1, so its left edge is at xmin - 1; the right edge of the
        # last pixel is at xmax.
        each.box = x1 - 1, y1 - 1, x2, y2
        # impossible, or unlikely, in this convention
        if x1 < 1 or y1 < 1:
            document.changed.add("boxes that begin at pixel 0, not 1: --boxes corners?")
        if 1 in (x2 - x1 + 1, y2 - y1 + 1):
            document.changed.add("boxes one pixel wide or high: --boxes corners?")


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
