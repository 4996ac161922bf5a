"""Images that are copies of others in another encoding or size, found by their thumbnails.

N images, Q queries. Thumbnails are (32, 32) uint8, grey.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from detection.data.image_content import THUMBNAIL_SIDE, ImageFact

MOST_MEAN = 1.75
"""Grey levels: largest mean absolute difference of two thumbnails of one image.

Measured on coco128 and BCCD: JPEG copies of quality 50 to 95, and copies of a third to 1.2 times
the size, differ by at most 0.99. The closest two of the 128 images of coco128 differ by 17.6, of
the 364 of BCCD by 9.2, but for one pair: one field of a slide, focused twice, differs by 3.1."""
MOST_CELL = 20
"""Grey levels: largest difference of one pixel of the thumbnails. Copies differ by at most 15,
different images by at least 24. This tells apart images of a static camera or of printed forms."""
MOST_SHARE = 0.1
"""Largest mean difference as a share of the thumbnail's standard deviation, so that images with
hardly any contrast are not taken for copies. Copies have at most 0.032, others at least 0.15."""
MOST_TRIED = 50
"""Images of one bucket that an image is compared with; a bucket is larger only if many images of
one scene differ by more than `MOST_CELL`."""

_BLOCKS = 4  # the features are of 4x4 blocks of pixels
_GRID = 3  # features that make a bucket
_WIDTH = MOST_MEAN + 0.01  # of a bucket, in grey levels; the rest is for rounding
_CHUNK = 4096  # thumbnails compared at once: 4 MB


def thumbnails_of(facts: Sequence[ImageFact]) -> np.ndarray:
    """Return the thumbnails of decoded images as (N, 1024) uint8."""
    data = b"".join(fact.thumbnail for fact in facts)
    return np.frombuffer(data, np.uint8).reshape(len(facts), THUMBNAIL_SIDE**2)


def near_copies(
    queries: np.ndarray, images: np.ndarray, *, limits: np.ndarray
) -> tuple[np.ndarray, int]:
    """Find for each query an image of which it is nearly a copy.

    The mean difference of two thumbnails is at least that of any sum of their pixels with signs.
    So near copies are in the same or in adjacent buckets of such features, and nothing is lost.

    Args:
        queries: (Q, 1024) uint8 thumbnails.
        images: (N, 1024) uint8.
        limits: (Q,) int64; a query is compared with images before this place.

    Returns:
        The place in `images`, or -1: (Q,) int64; and the number of queries without a copy that were
        not compared with all images of their buckets, see `MOST_TRIED`.
    """
    found = np.full(len(queries), -1, np.int64)
    is_cut = np.zeros(len(queries), np.bool_)
    if not len(queries) or not len(images):
        return found, 0
    asked, spread = _features_of(queries)
    known, _ = _features_of(images)
    axes = np.argsort(-known.std(axis=0))[:_GRID]  # those that tell most images apart
    buckets = _buckets_of(known[:, axes])
    order = np.argsort(buckets, kind="stable")
    keys, starts = np.unique(buckets[order], return_index=True)
    # ascending: by bucket, then by place
    ranked = np.searchsorted(keys, buckets[order]) * (len(images) + 1) + order
    most = np.minimum(MOST_MEAN, MOST_SHARE * spread)
    for shift in itertools.product((-1, 0, 1), repeat=_GRID):
        wanted = _buckets_of(asked[:, axes], shift=shift)
        rank = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        first = starts[rank]
        last = np.searchsorted(ranked, rank * (len(images) + 1) + limits) - 1
        active = np.flatnonzero((keys[rank] == wanted) & (found < 0) & (last >= first))
        for tried in range(MOST_TRIED):  # the latest first: it is the next in a video
            if not len(active):
                break
            places = order[last[active] - tried]
            is_close = (np.abs(asked[active] - known[places]) <= _WIDTH).all(axis=1)
            close = np.flatnonzero(is_close)
            near = close[_are_near(queries, active[close], images, places[close], most)]
            found[active[near]] = places[near]
            active = np.delete(active, near)
            active = active[last[active] - tried > first[active]]
        is_cut[active] = True
    return found, int((is_cut & (found < 0)).sum())


def _features_of(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features and standard deviations of thumbnails: (N, 16) and (N,) float32.

    The features are means of all pixels, each with the sign of a Walsh function.
    """
    side = THUMBNAIL_SIDE // _BLOCKS
    signs = np.ones((1, 1), np.float32)
    while len(signs) < _BLOCKS**2:
        signs = np.kron(np.array([[1, 1], [1, -1]], np.float32), signs)
    means = np.zeros((len(thumbnails), _BLOCKS**2), np.float32)
    spreads = np.zeros(len(thumbnails), np.float32)
    for start in range(0, len(thumbnails), _CHUNK):
        part = slice(start, start + _CHUNK)
        pixels = thumbnails[part].astype(np.float32)
        blocks = pixels.reshape(-1, _BLOCKS, side, _BLOCKS, side).mean(axis=(2, 4))
        means[part] = blocks.reshape(len(pixels), -1)
        spreads[part] = pixels.std(axis=1)
    return means @ signs / _BLOCKS**2, spreads


def _buckets_of(features: np.ndarray, *, shift: Sequence[int] = (0,) * _GRID) -> np.ndarray:
    """Return the number of the bucket of each row of (n, `_GRID`) features: (n,) int64."""
    cells = np.floor(features / _WIDTH).astype(np.int64) + np.array(shift) + 512  # 1 to 1023
    buckets: np.ndarray = cells @ np.array([1 << 20, 1 << 10, 1])
    return buckets


def _are_near(
    queries: np.ndarray, rows: np.ndarray, images: np.ndarray, places: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """Return for each pair (row of `queries`, place in `images`) whether it is near: bool."""
    near = np.zeros(len(rows), np.bool_)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        pairs = queries[rows[part]].astype(np.int16) - images[places[part]]
        difference = np.abs(pairs)
        near[part] = difference.mean(axis=1) <= most[rows[part]]
        near[part] &= difference.max(axis=1) <= MOST_CELL
    return near
