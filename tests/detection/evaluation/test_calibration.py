"""Reliability diagrams: against counting bin by bin."""

import numpy as np

from detection.evaluation.calibration import reliability


def test_bins_and_error_by_counting() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.random(200), [0.0, 0.1, 0.5, 1.0]])
    right = rng.random(204) < scores**2
    found = reliability(scores, right, num_bins=10)
    error = 0.0
    for place in range(10):
        low, high = found.edges[place], found.edges[place + 1]
        inside = (scores <= high) & ((scores > low) | (place == 0))
        assert found.count[place] == inside.sum()
        np.testing.assert_allclose(found.mean_score[place], scores[inside].mean())
        np.testing.assert_allclose(found.fraction_right[place], right[inside].mean())
        error += abs(scores[inside].sum() - right[inside].sum()) / 204
    np.testing.assert_allclose(found.error, error)


def test_nothing_and_empty_bins() -> None:
    none = reliability(np.zeros(0), np.zeros(0, np.bool_))
    assert np.isnan(none.error)
    assert none.count.tolist() == [0] * 10
    single = reliability(np.array([0.95]), np.array([True]))
    assert np.isnan(single.mean_score[:9]).all()
    np.testing.assert_allclose(single.error, 0.05)
