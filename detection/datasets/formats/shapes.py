"""Geometry of annotation shapes: boxes, rotated boxes, ellipses, polygons and masks.

Points are flat lists x y x y ... in pixels; boxes are xyxy. Angles are in degrees, clockwise on the
screen (y points down).
"""

import math
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from detection.datasets.formats.document import Box
from detection.ops import rle

CIRCLE_POINTS = 64
"""Points of the polygon that replaces a circle or an ellipse: its area is 0.2 % smaller."""


def enclosing_box(points: Sequence[float]) -> Box:
    """Return the smallest box around points, of which there is at least one."""
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def box_points(box: Box) -> list[float]:
    """Return the corners of a box as a polygon, clockwise from the top left."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def rotate(points: Sequence[float], degrees: float, centre: tuple[float, float]) -> list[float]:
    """Return points turned around a centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned: list[float] = []
    for x, y in zip(points[::2], points[1::2], strict=True):
        dx, dy = x - centre[0], y - centre[1]
        turned += (centre[0] + dx * cos - dy * sin, centre[1] + dx * sin + dy * cos)
    return turned


def ellipse(centre: tuple[float, float], radii: tuple[float, float], degrees: float) -> list[float]:
    """Return an ellipse as a polygon; `radii` are its half axes along x and y before turning."""
    points: list[float] = []
    for step in range(CIRCLE_POINTS):
        angle = 2 * math.pi * step / CIRCLE_POINTS
        points += (centre[0] + radii[0] * math.cos(angle), centre[1] + radii[1] * math.sin(angle))
    return rotate(points, degrees, centre)


def polygon_area(points: Sequence[float]) -> float:
    """Return the area of a polygon, by the shoelace formula."""
    # relative to the first point, which keeps digits of small polygons far from the origin
    xs = [x - points[0] for x in points[::2]]
    ys = [y - points[1] for y in points[1::2]]
    pairs = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in pairs)) / 2


def join_parts(polygons: Sequence[list[float]]) -> list[float]:
    """Return one polygon of several parts, for formats that have one polygon for each object.

    From the first point of the first part a line leads to each other part and the same line back,
    so that the bridges enclose no area.
    """
    joined = [*polygons[0]]
    start = polygons[0][:2]
    for part in polygons[1:]:
        joined += [*start, *part, *part[:2]]
    return joined


def encode_mask(window: np.ndarray, *, top: int, left: int, size: tuple[int, int]) -> bytes:
    """Return COCO's compressed run lengths of a mask (h, w) bool at a place of an image.

    Parts of the window outside the image of `size` (height, width) are cut off.
    """
    first_row, first_column = max(-top, 0), max(-left, 0)
    window = window[first_row : max(size[0] - top, 0), first_column : max(size[1] - left, 0)]
    return rle.encode_window(window, top=max(top, 0), left=max(left, 0), size=size)


def mask_box(run_lengths: bytes, size: tuple[int, int]) -> Box:
    """Return the box of a mask; of zero size if the mask is empty."""
    x, y, width, height = coco_mask.toBbox({"size": list(size), "counts": run_lengths}).tolist()
    return x, y, x + width, y + height


def mask_area(run_lengths: bytes, size: tuple[int, int]) -> int:
    """Return the number of pixels of a mask."""
    return int(coco_mask.area({"size": list(size), "counts": run_lengths}))


def merge_masks(
    polygons: Sequence[list[float]], run_lengths: Sequence[bytes], size: tuple[int, int]
) -> bytes:
    """Return the run lengths of the union of polygons and masks, of which there is at least one."""
    parts = [{"size": list(size), "counts": each} for each in run_lengths]
    if polygons:
        parts += coco_mask.frPyObjects([list(part) for part in polygons], *size)
    merged: bytes = coco_mask.merge(parts)["counts"]
    return merged


def mask_window(run_lengths: bytes, size: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Return a mask cut to its pixels (h, w) bool, and its top row and left column.

    An empty mask gives one pixel that is not set, at the top left.
    """
    mask = rle.decode(run_lengths, size)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return mask[:1, :1], 0, 0
    top, left = int(rows[0]), int(columns[0])
    return mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1], top, left
