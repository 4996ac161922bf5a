"""Confusion of classes: against a loop over pairs, and on images made by hand."""

from pathlib import Path

import numpy as np
import pytest

from detection.evaluation.confusion import confusion
from detection.evaluation.matching import MatchTable
from tests.detection.evaluation.matched_tables import DEGENERATE, random_table, table_of
from tests.reference.boxes import iou


def counted_by_a_loop(table: MatchTable, *, score_thresh: float) -> np.ndarray:
    """Pairs of the same class by falling IoU, then of others, each box once."""
    k = len(table.names)
    shown = [d for d in range(len(table.det_label)) if table.det_score[d] >= score_thresh]
    plain = [g for g in range(len(table.gt_label)) if not table.gt_crowd[g]]
    pairs = []
    for d in shown:
        for g in plain:
            overlap = iou(table.det_box[d].tolist(), table.gt_box[g].tolist())
            if table.det_image[d] == table.gt_image[g] and overlap >= 0.5:
                pairs.append((table.det_label[d] != table.gt_label[g], -overlap, d, g))
    matrix, dets, objects = np.zeros((k + 1, k + 1), np.int64), set(), set()
    for _, _, d, g in sorted(pairs):
        if d not in dets and g not in objects:
            dets.add(d)
            objects.add(g)
            matrix[table.gt_label[g], table.det_label[d]] += 1
    for g in set(plain) - objects:
        matrix[table.gt_label[g], k] += 1
    crowds = table.pairs.of((table.pairs.ious >= 0.5) & table.gt_crowd[table.pairs.objects])
    same = table.det_label[crowds.detections] == table.gt_label[crowds.objects]
    for d in set(shown) - dets - set(crowds.detections[same].tolist()):
        matrix[k, table.det_label[d]] += 1
    return matrix


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("score_thresh", [0.0, 0.3, 2.0])
def test_equals_a_loop(tmp_path: Path, seed: int, score_thresh: float) -> None:
    table = random_table(tmp_path, seed)
    found = confusion(table, score_thresh=score_thresh).matrix
    np.testing.assert_array_equal(found, counted_by_a_loop(table, score_thresh=score_thresh))
    # every object is in one cell of its row
    objects = np.bincount(table.gt_label[~table.gt_crowd], minlength=len(table.names))
    np.testing.assert_array_equal(found[:-1].sum(axis=1), objects)


def test_a_found_object_is_not_confused(tmp_path: Path) -> None:
    # the bee overlaps the ant more than the right detection does
    table = table_of(
        tmp_path,
        [(0, 1, (10, 10, 40, 40)), (1, 3, (0, 0, 20, 20))],
        [(0, 1, (14, 10, 40, 40), 0.6), (0, 2, (10, 10, 40, 40), 0.9), (2, 3, (0, 0, 9, 9), 0.7)],
    )
    found = confusion(table, score_thresh=0.5)
    expected = np.zeros((4, 4), np.int64)
    expected[0, 0], expected[3, 1], expected[3, 2], expected[2, 3] = 1, 1, 1, 1
    np.testing.assert_array_equal(found.matrix, expected)
    assert found.worst(9) == [(2, 3, 1), (3, 1, 1), (3, 2, 1)]
    higher = confusion(table, score_thresh=0.65)
    assert higher.matrix[0].tolist() == [0, 1, 0, 0]  # now the bee has the ant


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_runs(name: str, tmp_path: Path) -> None:
    objects, found, crowds = DEGENERATE[name]
    table = table_of(tmp_path, objects, found, crowds=crowds)
    matrix = confusion(table, score_thresh=0.0).matrix
    np.testing.assert_array_equal(matrix, counted_by_a_loop(table, score_thresh=0.0))
