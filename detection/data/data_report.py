"""Report on a COCO file: counts of its contents and of filled-in, dropped and suspicious values.

N images, M boxes.
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from backbones.weights import listing
from detection.data.segmentations import ByteStrings

MAX_PLACEHOLDER_AREA = 1.0
"""Areas up to this one may be a placeholder that some tools write (0 or 1)."""
MIN_CHECKED_BOX_AREA = 16.0
"""Boxes with at least this area must contain more than one pixel of their object."""


@dataclass(frozen=True)
class DataReport:
    """Counts of what was read, filled in or dropped, or is suspicious.

    dropped: number of objects by (reason, class name). missing: file name and reason of each image
    that cannot be read.
    """

    images: int
    images_without_boxes: int
    boxes_by_class: Mapping[str, int]
    crowds: int
    difficult: int
    ignored: int
    filled_areas: int
    filled_iscrowds: int
    unreadable_masks: int
    dropped_mask_parts: int
    clipped_boxes: int
    shared_files: int
    swapped_images: int
    repeated_boxes: int
    misfit_areas: int
    dropped: Mapping[tuple[str, str], int] = field(default_factory=dict)
    missing: Sequence[str] = ()

    def rows(self) -> list[tuple[str, int]]:
        """Return (what, count) for the console, without zero counts."""
        boxes = sum(self.boxes_by_class.values())
        unused = [name for name, count in self.boxes_by_class.items() if boxes and not count]
        rows = [
            ("images", self.images),
            ("images without boxes", self.images_without_boxes),
            ("images that share a file with another image", self.shared_files),
            ("images whose boxes fit only with width and height swapped", self.swapped_images),
            (f"images skipped: {listing(self.missing)}", len(self.missing)),
            ("boxes", boxes),
            ("crowd regions among them", self.crowds),
            ("difficult objects among them", self.difficult),
            ("objects marked `ignore` among them", self.ignored),
            ("repeated boxes (same image, class and box)", self.repeated_boxes),
            ("boxes clipped to their image", self.clipped_boxes),
            ("areas that do not fit their boxes", self.misfit_areas),
            ("areas filled in", self.filled_areas),
            ("iscrowd filled in", self.filled_iscrowds),
            ("unreadable masks", self.unreadable_masks),
            ("mask parts dropped (not polygons)", self.dropped_mask_parts),
            (f"classes without boxes: {listing(unused)}", len(unused)),
            *((f"boxes dropped, {why}: {name}", n) for (why, name), n in self.dropped.items()),
        ]
        return [row for row in rows if row[1] or row[0] in ("images", "boxes")]


def file_keys(names: Iterable[str]) -> list[str]:
    """Return each file name in one spelling: names of one file have equal keys."""
    odd = ("./", "//", "\\")  # normalising a million names takes seconds
    return [
        posixpath.normpath(name.replace("\\", "/").lstrip("/"))
        if name.startswith("/") or any(each in name for each in odd)
        else name
        for name in names
    ]


def count_shared_files(names: ByteStrings) -> int:
    """Count images with the file of an earlier image, even if the path is spelled differently."""
    data, offsets = names.data.tobytes(), names.offsets.tolist()
    files = {data[a:b].decode() for a, b in pairwise(offsets)}
    return len(names) - len(set(file_keys(files)))


def count_repeated_boxes(image_rows: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> int:
    """Count boxes (M, 4) float32 that repeat an earlier box of the same image and class."""
    keys = box_keys(image_rows, labels, boxes)
    keys.sort()  # equal keys are now neighbours
    return int(np.count_nonzero(keys[1:] == keys[:-1]))


def box_keys(image_rows: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return (M,) uint64, equal for boxes (M, 4) float32 of the same image, class and corners."""
    # A hash of each row (image, label, four coordinates); sorting the rows themselves would take
    # ten times as long. It is the sum of the columns, each times a random odd factor, modulo
    # 2 ** 64. Different rows have equal hashes once in 2 ** 63. Float32 coordinates are hashed as
    # their bits.
    columns = [image_rows, labels, *np.ascontiguousarray(boxes.T).view(np.uint32)]
    factors = np.random.default_rng(0).integers(2**63, size=len(columns), dtype=np.uint64) * 2 + 1
    keys = np.zeros(len(labels), np.uint64)
    for column, factor in zip(columns, factors, strict=True):
        keys += column.astype(np.uint64) * factor
    return keys


def find_misfit_areas(areas: np.ndarray, xywh: np.ndarray) -> np.ndarray:
    """Return (M,) bool: areas (M,) that are larger than their boxes (M, 4), or almost 0 in them.

    A mask includes each pixel that it touches, so it may exceed its box by one pixel per side.
    """
    with np.errstate(over="ignore"):  # huge boxes overflow to infinity, which no area exceeds
        most = (xywh[:, 2] + 1) * (xywh[:, 3] + 1)
    too_small = (areas <= MAX_PLACEHOLDER_AREA) & (xywh[:, 2] * xywh[:, 3] >= MIN_CHECKED_BOX_AREA)
    # 1 % of tolerance for rounding in the file
    misfit: np.ndarray = (areas > 1.01 * most) | too_small
    return misfit


def find_swapped_images(
    image_rows: np.ndarray, fits: np.ndarray, fits_swapped: np.ndarray
) -> np.ndarray:
    """Return the rows of images whose boxes reach outside but all fit with the sides swapped.

    Args:
        image_rows: (M,) int64, the image row of each box.
        fits: (M,) bool, as in `CheckedBoxes`.
        fits_swapped: (M,) bool, as in `CheckedBoxes`.
    """
    if fits.all():
        return np.zeros(0, np.int64)
    # images with a box outside, minus images with a box that does not fit swapped sides either
    return np.setdiff1d(image_rows[~fits], image_rows[~fits_swapped])
