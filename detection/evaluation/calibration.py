"""Calibration of scores: how often predictions with some score are right.

N predictions, M bins of equal width.
"""

from dataclasses import dataclass

import numpy as np

from backbones.classification.metrics import calibration_error


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram.

    edges: (M + 1,) from 0 to 1; bin m is (edges[m], edges[m + 1]], and the first one has 0 too.
    count: (M,). mean_score, fraction_right: (M,), NaN in an empty bin. error: the expected
    calibration error, the mean difference of the two weighted by count; NaN without predictions.
    """

    edges: np.ndarray
    count: np.ndarray
    mean_score: np.ndarray
    fraction_right: np.ndarray
    error: float


def reliability(scores: np.ndarray, is_right: np.ndarray, *, num_bins: int = 10) -> Reliability:
    """Return the reliability diagram of predictions.

    Args:
        scores: (N,) in [0, 1]; scores outside count in the first or last bin. N may be 0.
        is_right: (N,) bool.
        num_bins: M.
    """
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.searchsorted(edges[1:-1], scores, side="left")
    count = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=each, minlength=num_bins) for each in (scores, is_right)]
    means = [
        np.divide(each, count, out=np.full(num_bins, np.nan), where=count > 0) for each in sums
    ]
    error = calibration_error(scores, is_right, num_bins=num_bins) if len(scores) else np.nan
    return Reliability(edges, count, means[0], means[1], float(error))
