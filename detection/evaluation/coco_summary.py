"""COCO's twelve numbers, computed from matched tables.

T=10 IoU thresholds, D detections, K classes.
"""

import math

import numpy as np

from detection.evaluation.coco_ap import SUMMARY
from detection.evaluation.matching import (
    AREA_RANGES,
    MatchTable,
    average_precision,
    match_in_range,
)

_HALF, _THREE_QUARTERS = 0, 5  # indices of IoU 0.5 and 0.75


def coco_summary(table: MatchTable) -> dict[str, float]:
    """Return the numbers of `SUMMARY` in [0, 1]; NaN where there are no objects.

    Args:
        table: matched over all areas.
    """
    ranges = [match_in_range(table, AREA_RANGES[name]) for name in ("small", "medium", "large")]
    precision = average_precision(table)
    values = [mean_or_nan(precision), *map(mean_or_nan, precision[[_HALF, _THREE_QUARTERS]])]
    values += [mean_or_nan(average_precision(each)) for each in ranges]
    values += [average_recall(table, max_detections=count) for count in (1, 10, 100)]
    values += [average_recall(each) for each in ranges]
    return dict(zip(SUMMARY, values, strict=True))


def average_recall(table: MatchTable, *, max_detections: int = 100) -> float:
    """Return the recall, averaged over IoU thresholds and classes with objects.

    Args:
        table: the matched detections.
        max_detections: of an image and class, those with the highest scores.
    """
    kept = _ranks(table) < max_detections
    num_objects = table.num_objects
    known = num_objects > 0
    if not known.any():
        return math.nan
    found = [
        np.bincount(table.det_label[true & kept], minlength=len(num_objects))[known]
        for true in table.is_true
    ]
    return float((np.array(found) / num_objects[known]).mean())


def mean_or_nan(values: np.ndarray) -> float:
    """Return the mean of the numbers that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _ranks(table: MatchTable) -> np.ndarray:
    """Return the place of each detection among those of its image and class: (D,) from 0."""
    group = table.det_label * len(table.image_ids) + table.det_image
    # stable: detections of a class are by falling score already
    order = np.argsort(group, kind="stable")
    ranks = np.empty(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return ranks
