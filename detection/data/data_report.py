"""Report on a COCO file: counts of what it holds, was filled in, was dropped, or looks odd.

N images, M boxes.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from backbones.weights import listing
from detection.data.segmentations import ByteStrings

LARGEST_LINE = 1.0
"""Area from which an object is more than the placeholder that some tools write."""
SMALLEST_BOX = 16.0
"""Area from which a box must hold more than a pixel of its object."""


@dataclass(frozen=True)
class DataReport:
    """What was read, filled in, dropped, or looks odd.

    dropped: objects by (reason, class name). missing: a word on each image that cannot be read.
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
    turned_images: int
    repeated_boxes: int
    misfit_areas: int
    dropped: Mapping[tuple[str, str], int] = field(default_factory=dict)
    missing: Sequence[str] = ()

    def rows(self) -> list[tuple[str, int]]:
        """Return (what, count) for the console; what did not happen is left out."""
        boxes = sum(self.boxes_by_class.values())
        unused = [name for name, count in self.boxes_by_class.items() if boxes and not count]
        rows = [
            ("images", self.images),
            ("images without boxes", self.images_without_boxes),
            ("images whose file is another's too", self.shared_files),
            ("images whose boxes fit only with width and height swapped", self.turned_images),
            (f"images skipped: {listing(self.missing)}", len(self.missing)),
            ("boxes", boxes),
            ("crowd regions among them", self.crowds),
            ("difficult objects among them", self.difficult),
            ("objects marked `ignore` among them", self.ignored),
            ("boxes there twice (image, class and box)", self.repeated_boxes),
            ("boxes clipped to their image", self.clipped_boxes),
            ("areas that do not fit their boxes", self.misfit_areas),
            ("areas filled in", self.filled_areas),
            ("iscrowd filled in", self.filled_iscrowds),
            ("unreadable masks", self.unreadable_masks),
            ("mask parts dropped (no polygons)", self.dropped_mask_parts),
            (f"classes without boxes: {listing(unused)}", len(unused)),
            *((f"boxes dropped, {why}: {name}", n) for (why, name), n in self.dropped.items()),
        ]
        return [row for row in rows if row[1] or row[0] in ("images", "boxes")]


def count_shared_files(names: ByteStrings) -> int:
    """Return how many images name a file that an earlier one names, in whatever spelling."""
    data, offsets = names.data.tobytes(), names.offsets.tolist()
    files = {data[a:b] for a, b in pairwise(offsets)}
    starts = names.data[names.offsets[:-1]]  # no name is empty
    if any(odd in data for odd in (b"./", b"//", b"\\")) or (starts == ord("/")).any():
        files = {posixpath.normpath(each.replace(b"\\", b"/").lstrip(b"/")) for each in files}
    return len(names) - len(files)


def count_repeated_boxes(image_rows: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> int:
    """Return how many boxes (M, 4) float32 are there before, of the same image and class."""
    # Sums of the columns, each times an odd number of 64 random bits, are equal for equal rows, and
    # for others once in 2 ** 63; to sort the rows themselves would take ten times as long.
    columns = [image_rows, labels, *np.ascontiguousarray(boxes.T).view(np.uint32)]
    factors = np.random.default_rng(0).integers(2**63, size=len(columns), dtype=np.uint64) * 2 + 1
    keys = np.zeros(len(labels), np.uint64)
    for column, factor in zip(columns, factors, strict=True):
        keys += column.astype(np.uint64) * factor
    keys.sort()
    return int(np.count_nonzero(keys[1:] == keys[:-1]))


def count_misfit_areas(areas: np.ndarray, xywh: np.ndarray) -> int:
    """Return how many areas (M,) are larger than their boxes (M, 4), or next to nothing in them.

    A mask covers each pixel that it touches, so that a pixel a side is not held against it.
    """
    with np.errstate(over="ignore"):
        most = (xywh[:, 2] + 1) * (xywh[:, 3] + 1)
    too_small = (areas <= LARGEST_LINE) & (xywh[:, 2] * xywh[:, 3] >= SMALLEST_BOX)
    return int(np.count_nonzero((areas > 1.01 * most) | too_small))


def count_turned_images(image_rows: np.ndarray, fits: np.ndarray, fits_turned: np.ndarray) -> int:
    """Return how many images have boxes outside, all of which fit with its sides swapped.

    Args:
        image_rows: (M,) int64, the image of each box.
        fits: (M,) bool, as in `CheckedBoxes`.
        fits_turned: (M,) bool.
    """
    if fits.all():
        return 0
    return len(np.setdiff1d(image_rows[~fits], image_rows[~fits_turned]))
