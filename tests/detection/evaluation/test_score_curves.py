"""Precision, recall and F1 over the score: against counting, threshold by threshold."""

import math
from pathlib import Path

import numpy as np
import pytest

from detection.evaluation.score_curves import GRID, class_curves, pooled_curve, score_curve
from tests.detection.evaluation.matched_tables import DEGENERATE, random_table, table_of


def f1_at(scores: np.ndarray, right: np.ndarray, thresh: float, num_objects: int) -> float:
    kept = scores >= thresh
    true, false = int(right[kept].sum()), int((~right[kept]).sum())
    return 2 * true / (2 * true + false + num_objects - true)


@pytest.mark.parametrize("seed", range(5))
def test_curve_counts_detections_with_at_least_the_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random(60).round(1 + seed % 2)  # many are equal, and equal to thresholds
    right = rng.random(60) < scores
    num_objects = int(right.sum()) + 7
    curve = score_curve(scores, right, num_objects=num_objects)
    for place, thresh in enumerate(GRID):
        kept = scores >= thresh
        expected = right[kept].mean() if kept.any() else math.nan
        np.testing.assert_allclose(curve.precision[place], expected)
        np.testing.assert_allclose(curve.recall[place], right[kept].sum() / num_objects)
        np.testing.assert_allclose(curve.f1[place], f1_at(scores, right, thresh, num_objects))
    every = {thresh: f1_at(scores, right, thresh, num_objects) for thresh in scores.tolist()}
    assert curve.best_f1 == pytest.approx(max(every.values()))
    assert every[curve.best_thresh] == pytest.approx(curve.best_f1)
    assert curve.best_thresh == max(t for t, f1 in every.items() if f1 >= curve.best_f1 - 1e-12)


def test_classes_add_up_to_the_pooled_counts(tmp_path: Path) -> None:
    table = random_table(tmp_path)
    curves, pooled = class_curves(table), pooled_curve(table)
    assert sum(curve.num_objects for curve in curves) == pooled.num_objects
    found = sum(np.nan_to_num(curve.recall) * curve.num_objects for curve in curves)
    np.testing.assert_allclose(found, pooled.recall * pooled.num_objects)


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_runs(name: str, tmp_path: Path) -> None:
    objects, found, crowds = DEGENERATE[name]
    curve = pooled_curve(table_of(tmp_path, objects, found, crowds=crowds))
    best = {"one of each": (0.9, 1.0), "scores of 0 and 1": (0.0, 1.0)}.get(name)
    if best is None:
        assert math.isnan(curve.best_thresh)
        assert math.isnan(curve.best_f1)
    else:
        assert (curve.best_thresh, curve.best_f1) == best
    assert np.isnan(curve.recall).all() == (name == "all crowd")
