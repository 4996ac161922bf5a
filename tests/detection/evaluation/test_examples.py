"""Which examples are chosen: errors by image, false positives, missed objects, label errors."""

from pathlib import Path

import numpy as np
import pytest

from detection.evaluation.examples import (
    false_positives,
    image_errors,
    label_errors,
    missed_objects,
)
from tests.detection.evaluation.matched_tables import (
    DEGENERATE,
    Found,
    Object,
    random_table,
    table_of,
)

OBJECTS: list[Object] = [
    (0, 1, (10, 10, 40, 40)),  # found
    (0, 2, (100, 10, 40, 40)),  # found as an ant
    (1, 1, (10, 10, 40, 40)),  # annotated twice
    (1, 1, (11, 10, 40, 40)),
    (2, 3, (50, 50, 20, 20)),  # missed, and nothing is near
    (3, 3, (0, 0, 90, 90)),  # a crowd
]
FOUND: list[Found] = [
    (0, 1, (10, 10, 40, 40), 0.9),
    (0, 1, (100, 10, 40, 41), 0.8),
    (1, 1, (10, 10, 40, 40), 0.7),
    (2, 2, (150, 10, 30, 30), 0.95),
    (3, 1, (10, 10, 30, 30), 0.99),  # in the crowd of another class
    (2, 2, (0, 60, 30, 30), 0.3),
]


def test_every_kind_of_label_error_is_found(tmp_path: Path) -> None:
    table = table_of(tmp_path, OBJECTS, FOUND, crowds=[5])
    found = label_errors(table, score_thresh=0.5)
    assert table.det_row[found.missing].tolist() == [3]
    assert table.det_row[found.other_class].tolist() == [1]
    assert table.gt_ids[found.duplicates].tolist() == [[3, 4]]
    assert table.gt_ids[found.unseen].tolist() == [5]


def test_errors_by_image(tmp_path: Path) -> None:
    table = table_of(tmp_path, OBJECTS, FOUND, crowds=[5])
    errors = image_errors(table, score_thresh=0.5)
    assert errors.right.tolist() == [1, 1, 0, 0]
    assert errors.wrong.tolist() == [1, 0, 1, 1]
    assert errors.missed.tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(errors.f1, [0.5, 2 / 3, 0, 0])
    assert errors.worst().tolist() == [2, 0, 3, 1]
    assert table.det_row[false_positives(table, score_thresh=0.0)].tolist() == [4, 3, 1, 5]
    assert table.gt_ids[missed_objects(table, score_thresh=0.75)].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("thresh", [0.0, 0.4, 1.1])
def test_counts_add_up(tmp_path: Path, thresh: float) -> None:
    table = random_table(tmp_path)
    errors = image_errors(table, score_thresh=thresh)
    assert errors.right.sum() + errors.missed.sum() == (~table.gt_crowd).sum()
    assert errors.wrong.sum() == len(false_positives(table, score_thresh=thresh))
    shown = (table.det_score >= thresh) & ~table.det_ignored[0]
    assert errors.right.sum() + errors.wrong.sum() == shown.sum()


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_runs(name: str, tmp_path: Path) -> None:
    objects, found, crowds = DEGENERATE[name]
    table = table_of(tmp_path, objects, found, crowds=crowds)
    errors = image_errors(table, score_thresh=0.0)
    assert errors.right.sum() == {"one of each": 1, "scores of 0 and 1": 2}.get(name, 0)
    suspects = label_errors(table, score_thresh=0.5)
    assert len(suspects.duplicates) == 0
    assert len(suspects.missing) == {"all wrong": 2, "boxes without a side": 1}.get(name, 0)
