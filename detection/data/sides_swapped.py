"""Which of two frames boxes were drawn in, where an image's width and height are swapped.

Some tools export the width and height of a file as it is stored, and boxes of the image as it is
shown, after its EXIF rotation; others draw the boxes without the rotation as well. Rotations by 180
degrees and mirrors swap no sides, nor does any rotation of a square image: those are not noticed.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from backbones.images import read_size
from detection.data.box_checks import fit
from detection.data.coco import Annotations
from engine.errors import UserError

LOOKED_AT = 50
"""Images of the file whose sizes are read, for more boxes to judge by."""


def describe_swapped_sides(
    annotations: Annotations, row: int, path_of: Callable[[int], Path]
) -> str:
    """Say which frame the boxes fit, how many of them, and what to do about it.

    Args:
        annotations: of all images.
        row: an image whose sides are the annotated ones, swapped.
        path_of: the path of the image of a row.
    """
    rows = {row}
    for other in range(min(len(annotations), LOOKED_AT)):
        with suppress(UserError):
            if other != row and _is_swapped(annotations, other, path_of):
                rows.add(other)
    objects = np.concatenate(
        [np.arange(annotations.offsets[each], annotations.offsets[each + 1]) for each in rows]
    )
    height, width = annotations.sizes[row].tolist()
    fits, rows_of = annotations.fits[objects], annotations.row_of(objects)
    # those that fit are not clipped, and can be held against another size
    inside = fit(annotations.boxes[objects], annotations.sizes[rows_of][:, ::-1])
    return describe_fit(
        fits,
        np.where(fits, inside, annotations.fits_turned[objects]),
        names=(f"{width}x{height}", f"{height}x{width}"),
        images=len(rows),
    )


def _is_swapped(annotations: Annotations, row: int, path_of: Callable[[int], Path]) -> bool:
    height, width = annotations.sizes[row].tolist()
    return height != width and read_size(path_of(row)) == (width, height)


def describe_fit(
    fits: np.ndarray, fits_turned: np.ndarray, *, names: tuple[str, str], images: int
) -> str:
    """Return what boxes say about their frame.

    Args:
        fits: (M,) bool, inside the annotated size.
        fits_turned: (M,) bool, inside the size with its sides swapped, that of the images.
        names: of the annotated size and of the images', of one image.
        images: with these boxes.
    """
    count, own, turned = len(fits), int(fits.sum()), int(fits_turned.sum())
    annotated, real = names
    swap = "swap `width` and `height` of these images in the JSON"
    strip = "remove the EXIF orientation from copies of the images"
    many = "of this image" if images == 1 else f"of {images} such images"
    if turned == count > own:
        return (
            f"{count} of {count} boxes {many} fit {real}, and {count - own} do not fit {annotated}:"
            f" they are of the image as it is shown; {swap}"
        )
    if own == count > turned:
        return (
            f"{count} of {count} boxes {many} fit {annotated}, and {count - turned} do not fit"
            f" {real}: they were drawn on the image unrotated; {strip}"
        )
    said = f"all {count} boxes {many} fit both {annotated} and {real}"
    if own < count:
        said = f"of {count} boxes {many} {own} fit {annotated} and {turned} {real}"
    return (
        f"{said if count else 'it has no boxes'}, so that in which they were drawn cannot be told;"
        f" look at some: if they were drawn on the image as it is shown, {swap}; if not, {strip}"
    )
