import numpy as np

from detection.datasets.box_outliers import robust_deviations


def test_deviations_are_robust() -> None:
    values = np.array([1.0, 2, 3, 4, 5, 100, 7, 7, 7, 9])
    groups = np.array([0] * 6 + [1] * 3 + [-1])
    found, medians = robust_deviations(values, groups, least=0.1)
    # median 3.5, absolute deviations 0.5 0.5 1.5 1.5 2.5 96.5: MAD 1.5
    np.testing.assert_allclose(found[:6], (values[:6] - 3.5) / (1.4826 * 1.5))
    assert found[6:].tolist() == [0, 0, 0, 0]
    assert medians.tolist() == [3.5] * 6 + [7] * 3 + [0]
    few, _ = robust_deviations(values, groups, least=0.1, min_count=7)
    assert few.tolist() == [0] * 10
    assert len(robust_deviations(np.zeros(0), np.zeros(0, np.int64), least=0.1)[0]) == 0
