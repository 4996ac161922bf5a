"""Images that share a training batch, so that little of it is padding.

N images, U steps of the aspect ratio that they have.
"""

import numpy as np

from detection.data.transforms import resized_size

ASPECT_STEP = 0.01
"""Of log(width / height): images nearer to each other are taken for equal."""
MIN_GROUP = 32
"""Images in a group of its own: of a handful, the same ones would always meet."""


def aspect_groups(
    sizes: np.ndarray, count: int, *, batch_size: int, short_side: int, max_side: int
) -> np.ndarray:
    """Return (N,) int64 from 0 on by rising width / height of `sizes` (N, 2); N may be 0.

    Two groups are portrait and landscape, however many images each has. More are the groups that
    pad least, each padded to what holds all of its images; they may be fewer than `count`. Each
    has MIN_GROUP images and those of two batches at least; where there are not enough for two
    such groups, they are portrait and landscape again.

    Args:
        sizes: (N, 2) height and width.
        count: the most groups.
        batch_size: images in a batch; a batch of a smaller group would hold some twice.
        short_side: of a resized image, see `resized_size`.
        max_side: its cap.
    """
    log_aspect = np.log(sizes[:, 1] / sizes[:, 0])
    if count == 1:
        return np.zeros(len(sizes), np.int64)
    smallest = max(MIN_GROUP, 2 * batch_size)
    if count == 2 or len(sizes) < 2 * smallest:
        return np.where(log_aspect >= 0, 1, 0)
    resized = np.array(
        [resized_size((height, width), short_side, max_side) for height, width in sizes.tolist()]
    )
    _, steps = np.unique(np.round(log_aspect / ASPECT_STEP), return_inverse=True)
    starts = _cheapest_starts(_padded_areas(resized, steps, smallest=smallest), count)
    groups: np.ndarray = np.searchsorted(starts[1:], steps, side="right")
    return groups


def _padded_areas(resized: np.ndarray, steps: np.ndarray, *, smallest: int) -> np.ndarray:
    """Return (U, U + 1): [i, j] the pixels of a group of steps i to j - 1, infinite for no group.

    Args:
        resized: (N, 2) height and width.
        steps: (N,) int64 in 0..U-1.
        smallest: fewest images in a group.
    """
    counts = np.bincount(steps)
    sides = np.zeros((len(counts), 2), np.int64)
    np.maximum.at(sides, steps, resized)
    areas = np.full((len(counts), len(counts) + 1), np.inf)
    for first in range(len(counts)):
        images = np.cumsum(counts[first:])
        area = np.maximum.accumulate(sides[first:]).prod(axis=1) * images
        areas[first, first + 1 :] = np.where(images < smallest, np.inf, area)
    return areas


def _cheapest_starts(areas: np.ndarray, count: int) -> np.ndarray:
    """Return the first steps of at most `count` groups of the least total area.

    The exact optimum by dynamic programming over where the last of 1, 2, ... groups starts.
    """
    least = np.full(len(areas) + 1, np.inf)
    least[0] = 0
    totals, last_starts = [], []
    for _ in range(count):
        through = least[:-1, None] + areas
        last_starts.append(through.argmin(axis=0))
        least = through.min(axis=0)
        totals.append(least[-1])
    starts, end = [], len(areas)
    for choice in reversed(last_starts[: int(np.argmin(totals)) + 1]):
        end = int(choice[end])
        starts.append(end)
    return np.array(starts[::-1])
