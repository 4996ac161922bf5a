"""Groups of images with similar aspect ratio, so that training batches need little padding.

N images, U distinct aspect ratios after rounding (steps).
"""

import numpy as np

from detection.data.transforms import resized_size

ASPECT_STEP = 0.01
"""Rounding step of log(width / height): 1 % of the aspect ratio."""
MIN_GROUP = 32
"""Minimum number of images in a group: those of a smaller one would always share a batch."""


def aspect_groups(
    sizes: np.ndarray, count: int, *, batch_size: int, short_side: int, max_side: int
) -> np.ndarray:
    """Return the group of each image, (N,) int64 from 0 on, in ascending order of width / height.

    With `count` 2 the groups are portrait and landscape, whatever their number of images. More
    groups are chosen for the least padding, with each group padded to a size that contains all of
    its images; they may be fewer than `count`. Each such group has at least MIN_GROUP images and
    two batches. With too few images for two such groups, the groups are portrait and landscape.

    Args:
        sizes: (N, 2) height and width; N may be 0.
        count: maximum number of groups.
        batch_size: images in a batch; a batch of a smaller group would contain some twice.
        short_side: shorter side of a resized image, see `resized_size`.
        max_side: maximum of the longer side.
    """
    # the log makes 1:2 as far from square as 2:1
    log_aspect = np.log(sizes[:, 1] / sizes[:, 0])
    if count == 1:
        return np.zeros(len(sizes), np.int64)
    smallest = max(MIN_GROUP, 2 * batch_size)
    if count == 2 or len(sizes) < 2 * smallest:
        return np.where(log_aspect >= 0, 1, 0)
    resized = np.array(
        [resized_size((height, width), short_side, max_side) for height, width in sizes.tolist()]
    )
    # (N,) rank of each image's rounded aspect ratio among the U distinct ones
    _, steps = np.unique(np.round(log_aspect / ASPECT_STEP), return_inverse=True)
    starts = _cheapest_starts(_padded_areas(resized, steps, smallest=smallest), count)
    # group i is the steps from starts[i] up to starts[i + 1]
    groups: np.ndarray = np.searchsorted(starts[1:], steps, side="right")
    return groups


def _padded_areas(resized: np.ndarray, steps: np.ndarray, *, smallest: int) -> np.ndarray:
    """Return (U, U + 1): [i, j] is the padded area of a group of steps i to j - 1.

    Infinite if the group is empty or too small.

    Args:
        resized: (N, 2) height and width.
        steps: (N,) int64 in 0..U-1.
        smallest: minimum number of images in a group.
    """
    counts = np.bincount(steps)
    # (U, 2) largest height and width of the images of each step
    sides = np.zeros((len(counts), 2), np.int64)
    np.maximum.at(sides, steps, resized)
    areas = np.full((len(counts), len(counts) + 1), np.inf)
    for first in range(len(counts)):
        # Running count and running maximum over the steps from `first` on give the groups of all
        # ends at once. Each image of a group is padded to the group's largest height and width.
        images = np.cumsum(counts[first:])
        area = np.maximum.accumulate(sides[first:]).prod(axis=1) * images
        areas[first, first + 1 :] = np.where(images < smallest, np.inf, area)
    return areas


def _cheapest_starts(areas: np.ndarray, count: int) -> np.ndarray:
    """Return the first step of each of at most `count` groups with the least total area.

    Exact, by dynamic programming over the start of the last of 1, 2, ... groups.
    """
    # least[j]: least area of the steps before j, in as many groups as rounds of the loop so far.
    # Zero groups cover zero steps and nothing else.
    least = np.full(len(areas) + 1, np.inf)
    least[0] = 0
    totals, last_starts = [], []  # by number of groups, from 1 on
    for _ in range(count):
        # [i, j]: the best for the steps before i, then one more group from i to j - 1
        through = least[:-1, None] + areas
        last_starts.append(through.argmin(axis=0))
        least = through.min(axis=0)
        totals.append(least[-1])
    # Backtrack from the end, with the number of groups that has the least total.
    starts, end = [], len(areas)
    for choice in reversed(last_starts[: int(np.argmin(totals)) + 1]):
        end = int(choice[end])
        starts.append(end)
    return np.array(starts[::-1])
