"""Uncertainty of average precision: bootstrap intervals, paired differences, spread over seeds.

Images are resampled with replacement. The matching of an image does not depend on the others, so a
resample is only a weight for each image: how often it was drawn.

I images, K classes, T=10 IoU thresholds, B resamples.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from detection.evaluation.matching import RECALLS, MatchTable, average_precision
from engine.errors import UserError

RESAMPLES, CONFIDENCE = 1000, 0.95
# positions of the metrics' IoU thresholds
METRICS: Mapping[str, slice] = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}
_AT_ONCE = 300_000  # detections times resamples: a block that stays in the cache


@dataclass(frozen=True)
class Bootstrap:
    """AP of a run and of its resamples.

    names: of the K classes. ap: (T, K), samples: (B, T, K), NaN for a class without objects.
    """

    names: tuple[str, ...]
    ap: np.ndarray
    samples: np.ndarray


class Interval(NamedTuple):
    """A metric with the ends of its 95 % interval; all NaN without objects."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A metric of two runs, second minus first with its 95 % interval, and a two-sided p-value.

    p_value: 2 min(n, m) / (B + 1), at most 1, where n is 1 + the number of resamples with a
    difference of 0 or less, and m the same for 0 or more. All NaN without objects.
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    p_value: float


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1; NaN for a single run) of the runs of several seeds."""

    mean: float
    std: float
    num_runs: int


def bootstrap(table: MatchTable, *, resamples: int = RESAMPLES, seed: int = 0) -> Bootstrap:
    """Return AP of a run and of resamples of its images; the same seed draws the same images."""
    weights = draw_weights(len(table.image_ids), resamples=resamples, seed=seed)
    return Bootstrap(table.names, average_precision(table), weighted_ap(table, weights))


def intervals(run: Bootstrap) -> dict[str, Interval]:
    """Return the metrics of a run with their intervals.

    Keys are `ap`, `ap50`, `ap75` for the mean over classes and, for example, `ap50/<class>`.
    """
    return {
        name: _interval(value, samples)
        for name, (value, samples) in _metrics(run.names, run.ap, run.samples).items()
    }


def paired_difference(
    first: MatchTable, second: MatchTable, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Compare two runs on the same images, with the same resamples for both.

    Returns:
        The differences by the keys of `intervals`.

    Raises:
        UserError: the runs differ in images, classes or objects.
    """
    return mean_difference([first], [second], resamples=resamples, seed=seed)


def mean_difference(
    first: Sequence[MatchTable],
    second: Sequence[MatchTable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare the mean scores of two groups of runs on the same images, for example of seeds.

    Every run has the same resamples, so the interval is that of the images. It does not cover the
    seeds: how the runs of a group differ is their `spread`.

    Args:
        first: at least one run.
        second: at least one run; the number may differ.
        resamples: number of resamples.
        seed: draws the resamples.

    Returns:
        The differences by the keys of `intervals`.

    Raises:
        UserError: the runs differ in images, classes or objects.
    """
    for run in (*first[1:], *second):
        _check_comparable(first[0], run)
    weights = draw_weights(len(first[0].image_ids), resamples=resamples, seed=seed)
    before, after = (_mean_metrics(group, weights) for group in (first, second))
    result = {}
    for name, (value_before, drawn_before) in before.items():
        value_after, drawn_after = after[name]
        drawn = drawn_after - drawn_before
        ends = _percentiles(drawn)
        difference = value_after - value_before
        result[name] = Difference(value_before, value_after, difference, *ends, _p_value(drawn))
    return result


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of at least one value."""
    std = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values), std, len(values))


def as_dict(numbers: Mapping[str, Interval] | Mapping[str, Difference]) -> dict[str, Any]:
    """Return intervals or differences for JSON, null for NaN."""
    return {
        name: {key: None if math.isnan(x) else x for key, x in each._asdict().items()}
        for name, each in numbers.items()
    }


def draw_weights(num_images: int, *, resamples: int, seed: int) -> np.ndarray:
    """Return how often each image is in each resample: (B, I) uint8, rows with the sum I."""
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, num_images), np.uint8)
    for row in weights:
        row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return weights


def weighted_ap(table: MatchTable, weights: np.ndarray) -> np.ndarray:
    """Return AP with images counted several times: (B, T, K), NaN for a class without objects.

    It is the AP of a data set that has each image as often as its weight says.

    Args:
        table: the matches.
        weights: (B, I) non-negative integers.
    """
    is_true, num_classes = table.is_true, len(table.names)
    result = np.full((len(weights), len(table.iou_thresholds), num_classes), np.nan)
    for label, own in enumerate(table.class_slices):
        objects = table.gt_image[(table.gt_label == label) & ~table.gt_ignored]
        images, right, ignored = table.det_image[own], is_true[:, own], table.det_ignored[:, own]
        step = max(1, _AT_ONCE // max(len(images), 1))
        for first in range(0, len(weights) if len(objects) else 0, step):
            some = weights[first : first + step]
            # what was drawn: (b, detections of the class)
            drawn = np.take(some, images, axis=1).astype(np.int32)
            num_objects = np.take(some, objects, axis=1).sum(axis=1, dtype=np.int64)
            result[first : first + step, :, label] = _class_ap(drawn, right, ignored, num_objects)
    return result


def _class_ap(
    drawn: np.ndarray, right: np.ndarray, ignored: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """Return (b, T) from weights (b, N) of N detections by falling score, and numbers (b,)."""
    seen = np.cumsum(drawn, axis=1, dtype=np.int32)
    result = np.zeros((len(drawn), len(right)))
    for t, (is_right, is_ignored) in enumerate(zip(right, ignored, strict=True)):
        # Only right detections matter: precision falls at others, and recall stays.
        places, skipped = np.flatnonzero(is_right), np.flatnonzero(is_ignored)
        if not len(places):
            continue
        num_right = np.cumsum(np.take(drawn, places, axis=1), axis=1, dtype=np.int32)
        num_seen = np.take(seen, places, axis=1)
        if len(skipped):  # those before each place do not count
            passed = np.cumsum(np.take(drawn, skipped, axis=1), axis=1, dtype=np.int32)
            passed = np.concatenate([np.zeros((len(drawn), 1), np.int32), passed], axis=1)
            num_seen -= np.take(passed, np.searchsorted(skipped, places), axis=1)
        precision = num_right / np.maximum(num_seen, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        levels = _levels(num_right / np.maximum(num_objects, 1)[:, None])
        # the first detection that reaches a recall gives the precision there
        levels[:, 1:] -= levels[:, :-1].copy()
        result[:, t] = np.einsum("bn,bn->b", best, levels) / len(RECALLS)
    result[num_objects == 0] = np.nan
    return result


def _levels(recall: np.ndarray) -> np.ndarray:
    """Return how many of the 101 recalls are reached, exact to the last bit, as float64."""
    # The levels before the guess are reached, whatever the rounding; the guess itself is compared
    # as in `RECALLS`, whose values are multiples of 0.01.
    guess = (recall * 100 + 1e-6).astype(np.int32)
    return guess + (guess * 0.01 <= recall).astype(np.float64)


def _metrics(
    names: Sequence[str], value: np.ndarray, samples: np.ndarray
) -> dict[str, tuple[float, np.ndarray]]:
    """Return a value and (B,) samples of each metric, from (T, K) and (B, T, K)."""
    result = {}
    for metric, thresholds in METRICS.items():
        by_class, drawn = value[thresholds].mean(axis=0), samples[:, thresholds].mean(axis=1)
        result[metric] = (float(_mean(by_class[None])[0]), _mean(drawn))
        for label, name in enumerate(names):
            result[f"{metric}/{name}"] = (float(by_class[label]), drawn[:, label])
    return result


def _mean_metrics(
    runs: Sequence[MatchTable], weights: np.ndarray
) -> dict[str, tuple[float, np.ndarray]]:
    """Return the means over runs of what `_metrics` returns, from weights (B, I)."""
    metrics = [
        _metrics(run.names, average_precision(run), weighted_ap(run, weights)) for run in runs
    ]
    return {
        name: (
            statistics.fmean(each[name][0] for each in metrics),
            np.mean([each[name][1] for each in metrics], axis=0),
        )
        for name in metrics[0]
    }


def _mean(by_class: np.ndarray) -> np.ndarray:
    """Return the mean of (N, K) over the classes that have objects, NaN if there are none."""
    known = ~np.isnan(by_class)
    count = known.sum(axis=1)
    total = np.where(known, by_class, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _interval(value: float, samples: np.ndarray) -> Interval:
    """Return the percentile interval, moved down by the bias of AP.

    AP takes the best precision at each recall or above, so it is too high, the more so with few
    objects, and in resamples even more. So they are moved by twice what their mean exceeds the
    value: once for their own bias, once for that of the value. The interval always has the value.
    """
    low, high = _percentiles(samples)
    bias = max(float(np.nanmean(samples)) - value, 0.0) if not math.isnan(low) else 0.0
    return Interval(value, max(low - 2 * bias, 0.0), max(high - 2 * bias, value))


def _percentiles(samples: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval; resamples without objects are NaN and do not count."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return low, high


def _p_value(samples: np.ndarray) -> float:
    known = samples[~np.isnan(samples)]
    if not len(known):
        return math.nan
    tail = 1 + min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * tail / (len(known) + 1))


def _check_comparable(first: MatchTable, second: MatchTable) -> None:
    """Raise UserError if two runs were not scored against the same annotations."""
    parts = {
        "images": (first.image_ids, second.image_ids),
        "classes": (np.array(first.names), np.array(second.names)),
        "objects": (first.gt_ids, second.gt_ids),
        "classes of objects": (first.gt_label, second.gt_label),
    }
    for what, (ours, theirs) in parts.items():
        if not np.array_equal(ours, theirs):
            only = len(np.setdiff1d(ours, theirs)), len(np.setdiff1d(theirs, ours))
            raise UserError(
                f"paired difference: expected two runs with the same {what}, got {len(ours)} and "
                f"{len(theirs)}; {only[0]} are only in the first and {only[1]} in the second"
            )
    if first.iou_type != second.iou_type:
        raise UserError(
            "paired difference: expected boxes twice or masks twice, got "
            f"{first.iou_type} and {second.iou_type}"
        )
