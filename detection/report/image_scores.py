"""Scores of one right or wrong answer an image, as of classifiers: intervals, and their tables.

N images, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detection.report.markup import count, interval, percent, table

RESAMPLES = 1000


def share_interval(right: int, total: int, *, seed: int = 0) -> tuple[float, float]:
    """Return the ends of the 95 % bootstrap interval of right / total; NaN without images.

    A resample of the images has a binomial number of right ones, so none has to be drawn one by
    one.
    """
    if not total:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).binomial(total, right / total, RESAMPLES) / total
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return low, high


def share(right: np.ndarray) -> dict[str, float]:
    """Return the share of right answers with its interval, of (N,) bool."""
    low, high = share_interval(int(right.sum()), len(right))
    return {"value": float(right.mean()) if len(right) else np.nan, "low": low, "high": high}


def class_shares(
    right: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return for each class its number of images, and the share of right ones with its interval."""
    return [
        {"name": name, "images": int((labels == label).sum()), **share(right[labels == label])}
        for label, name in enumerate(names)
    ]


def class_table(classes: Sequence[dict[str, Any]], *, heading: str) -> str:
    """Return the table of `class_shares`."""
    rows = [
        (
            each["name"],
            count(each["images"]),
            percent(each["value"]),
            interval(each["low"], each["high"]),
        )
        for each in classes
    ]
    headings = ("class", "images", heading, "95 % interval")
    return table(headings, rows, caption=f"{len(rows)} classes, in percent")
