"""Masks of the objects of one image, drawn at the size of the network's input.

N objects of one image; H, W height and width of the image after its resize.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from detection.data.segmentations import Segmentations
from detection.ops.rle import decode, decode_columns


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of whole pixels of an image."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The row below the last one."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The column after the last one."""
        return self.left + self.width

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        """The same as a box."""
        return self.left, self.top, self.right, self.bottom

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the rows and columns in an array of the image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def shifted(self, down: int, right: int) -> "Rectangle":
        """Return the same rectangle, `down` rows and `right` columns further."""
        return Rectangle(self.top + down, self.left + right, self.height, self.width)

    def intersection(self, other: "Rectangle") -> "Rectangle":
        """Return what both have in common; height or width is 0 if they are apart."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        height = max(0, min(self.bottom, other.bottom) - top)
        width = max(0, min(self.right, other.right) - left)
        return Rectangle(top, left, height, width)


@dataclass(frozen=True)
class TightMask:
    """A mask of an image, stored inside the smallest box around its pixels.

    pixels: (h, w) bool, with a pixel in each outermost row and column; (0, 0) for an empty mask.
    top, left: row and column of the image where they begin.
    """

    pixels: np.ndarray
    top: int
    left: int

    @classmethod
    def around(cls, pixels: np.ndarray, *, top: int = 0, left: int = 0) -> "TightMask":
        """Return the mask of `pixels` (h, w) bool, which begin at `top`, `left` of the image."""
        rows = np.flatnonzero(pixels.any(axis=1))
        columns = np.flatnonzero(pixels.any(axis=0))
        if not len(rows):
            return cls(np.zeros((0, 0), np.bool_), 0, 0)
        y, x = int(rows[0]), int(columns[0])
        return cls(pixels[y : rows[-1] + 1, x : columns[-1] + 1], top + y, left + x)

    @property
    def rectangle(self) -> Rectangle:
        """The smallest box around the mask."""
        return Rectangle(self.top, self.left, *self.pixels.shape)


def draw_masks(
    segmentations: Segmentations,
    idxs: Sequence[int | None],
    size: tuple[int, int],
    resized: tuple[int, int],
) -> np.ndarray:
    """Return masks (N, H, W) bool of one image.

    Args:
        segmentations: segmentations of the whole file.
        idxs: N rows of `segmentations`; None gives a mask of zeros.
        size: (height, width) of the image in the file.
        resized: (H, W).

    Raises:
        ValueError: the run lengths do not sum to the number of pixels of the image.
    """
    masks = np.zeros((len(idxs), *resized), np.bool_)
    for mask, index in zip(masks, idxs, strict=True):
        if index is not None:
            drawn = draw_mask(segmentations, index, size=size, resized=resized)
            mask[drawn.rectangle.slices] = drawn.pixels
    return masks


def draw_mask(
    segmentations: Segmentations,
    index: int,
    *,
    size: tuple[int, int],
    resized: tuple[int, int],
    window: Rectangle | None = None,
) -> TightMask:
    """Return the mask of one object of an image that is resized, and cropped to a window.

    It is the mask of the whole resized image, pixel by pixel, but only the part of it that the
    object and the window cover is decoded.

    Args:
        segmentations: segmentations of the whole file.
        index: row of `segmentations`.
        size: (height, width) of the image in the file.
        resized: (H, W).
        window: of the resized image; None: all of it.

    Raises:
        ValueError: as for `draw_masks`.
    """
    window = Rectangle(0, 0, *resized) if window is None else window
    code = segmentations.run_lengths[index]
    if not code:  # polygons are scaled and then drawn, which is more exact than resizing a mask
        scale = np.array([resized[1] / size[1], resized[0] / size[0]])
        polygons = [
            # in float32 even if read in float64 for scoring, so that masks are the same
            (part.astype(np.float32).reshape(-1, 2) * scale).ravel().tolist()
            for part in segmentations.polygons(index)
        ]
        # one RLE per polygon; their union is the object's mask
        union = coco_mask.merge(coco_mask.frPyObjects(polygons, *resized))
        mask, left = decode_columns(union["counts"], resized, first=window.left, end=window.right)
        return TightMask.around(mask[window.top : window.bottom], left=left - window.left)
    if resized[0] < size[0]:
        # INTER_AREA averages the pixels that fall into a smaller one, which is in the mask if more
        # than half of its area is.
        coverage = cv2.resize(
            decode(code, size).astype(np.uint8) * 255, resized[::-1], interpolation=cv2.INTER_AREA
        )
        return TightMask.around(coverage[window.slices] > 127)
    mask, left = decode_columns(code, size, first=0, end=size[1])
    return _enlarged(TightMask.around(mask, left=left), size, resized, window)


def _enlarged(
    mask: TightMask, size: tuple[int, int], resized: tuple[int, int], window: Rectangle
) -> TightMask:
    """Return the part inside a window of an enlarged mask: each pixel is that of the nearest one.

    Args:
        mask: of the image in the file.
        size: (height, width) of this image.
        resized: its (height, width) after the resize.
        window: of the resized image; the result is in its coordinates.
    """
    box = mask.rectangle
    top, rows = _nearest(size[0], resized[0], (box.top, box.bottom), (window.top, window.bottom))
    left, columns = _nearest(
        size[1], resized[1], (box.left, box.right), (window.left, window.right)
    )
    pixels = mask.pixels[rows - box.top][:, columns - box.left]
    return TightMask.around(pixels, top=top - window.top, left=left - window.left)


def _nearest(
    length: int, resized: int, span: tuple[int, int], window: tuple[int, int]
) -> tuple[int, np.ndarray]:
    """Return the rows (or columns) of the file in a span that a resized window shows.

    The first result is the row of the resized image where they begin, the second has for each from
    there on its row in the file. Spans are the first row and the one after the last.
    """
    places = np.arange(length, dtype=np.float32)[None]  # exact: a file has fewer than 2^24 rows
    nearest = cv2.resize(places, (resized, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]
    first, end = np.searchsorted(nearest, span)
    first, end = max(int(first), window[0]), min(int(end), window[1])
    return first, nearest[first:end].astype(np.int64)
