"""Diagnosis of images whose annotated width and height are swapped: which frame the boxes are in.

Some tools export the width and height of the stored file, but draw boxes on the displayed image,
after its EXIF rotation. Others also draw the boxes on the stored, unrotated image. Rotations by
180 degrees, mirroring, and rotations of square images do not swap sides, so they are not noticed.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from backbones.images import read_size
from detection.data.box_checks import lie_inside
from detection.data.coco import Annotations
from engine.errors import UserError

LOOKED_AT = 50
"""Number of other images whose sizes are read, to find more boxes for the diagnosis."""


def describe_swapped_sides(
    annotations: Annotations, row: int, path_of: Callable[[int], Path]
) -> str:
    """Return a message: which frame the boxes fit, how many do, and what to do.

    Args:
        annotations: annotations of all images.
        row: row of an image whose sides are swapped in the annotations.
        path_of: function from a row to the path of its image.
    """
    rows = {row}
    for other in range(min(len(annotations), LOOKED_AT)):
        with suppress(UserError):
            if other != row and _is_swapped(annotations, other, path_of):
                rows.add(other)
    # rows of the objects of all these images
    objects = np.concatenate(
        [np.arange(annotations.offsets[each], annotations.offsets[each + 1]) for each in rows]
    )
    height, width = annotations.sizes[row].tolist()
    fits, rows_of = annotations.fits[objects], annotations.row_of(objects)
    # Boxes that fit were not clipped, so they can be checked against the swapped size here. For the
    # others, `fits_swapped` was computed from the unclipped box.
    inside = lie_inside(annotations.boxes[objects], annotations.sizes[rows_of][:, ::-1])
    return describe_fit(
        fits,
        np.where(fits, inside, annotations.fits_swapped[objects]),
        names=(f"{width}x{height}", f"{height}x{width}"),
        images=len(rows),
    )


def _is_swapped(annotations: Annotations, row: int, path_of: Callable[[int], Path]) -> bool:
    height, width = annotations.sizes[row].tolist()
    return height != width and read_size(path_of(row)) == (width, height)


def describe_fit(
    fits: np.ndarray, fits_swapped: np.ndarray, *, names: tuple[str, str], images: int
) -> str:
    """Return the message for boxes that fit one, both or neither of the two frames.

    Args:
        fits: (M,) bool, inside the annotated size.
        fits_swapped: (M,) bool, inside the size with swapped sides, which the image files have.
        names: the annotated and the actual size of one image, as text.
        images: number of images with these boxes.
    """
    count, own, swapped = len(fits), int(fits.sum()), int(fits_swapped.sum())
    annotated, real = names
    swap = "swap `width` and `height` of these images in the JSON"
    strip = "remove the EXIF orientation from copies of the images"
    many = "of this image" if images == 1 else f"of {images} such images"
    if swapped == count > own:
        return (
            f"{count} of {count} boxes {many} fit {real}, and {count - own} do not fit {annotated}:"
            f" they were drawn on the image as displayed; {swap}"
        )
    if own == count > swapped:
        return (
            f"{count} of {count} boxes {many} fit {annotated}, and {count - swapped} do not fit"
            f" {real}: they were drawn on the image unrotated; {strip}"
        )
    result = f"all {count} boxes {many} fit both {annotated} and {real}"
    if own < count:
        result = f"of {count} boxes {many} {own} fit {annotated} and {swapped} {real}"
    return (
        f"{result if count else 'it has no boxes'}, so the orientation is unknown;"
        f" look at some: if they were drawn on the image as displayed, {swap}; if not, {strip}"
    )
