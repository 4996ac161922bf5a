"""The oracle ladder on scenes whose rungs are plain, and on random boxes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.evaluation.ground_truth import read_ground_truth
from detection.evaluation.matching import average_precision, match, with_labels
from detection.evaluation.oracle_ladder import RUNGS, Rung, ladder_as_dict, oracle_ladder
from tests.detection.evaluation.coco_documents import write
from tests.detection.evaluation.test_coco_backends import random_results, random_truth
from tests.detection.evaluation.test_errors import DOCUMENT, scene
from tests.detection.evaluation.test_matching import found_in

# recalls of 0 to 0.5, of 101
HALF = 51 / 101


def ladder_of(document: dict[str, Any], results: list[dict[str, Any]], folder: Path) -> list[Rung]:
    truth = read_ground_truth(write(folder / "truth.json", document))
    return list(
        oracle_ladder(match(found_in(results, truth, iou_type="bbox"), truth, iou_type="bbox"))
    )


SCENES = {
    # one cat and two dogs; the ap50 of each rung
    "nothing": ([], [0, 0, 0, 0, 0, 1]),
    "the cat": ([(1, [0, 0, 100, 100], 0.5)], [0.5, 0.5, 0.5, 0.5, 0.5, 1]),
    "a dog called cat": (
        [(1, [0, 0, 100, 100], 0.9), (1, [200, 0, 100, 100], 0.8)],
        [0.5, *[(1 + HALF) / 2] * 4, 1],
    ),
    "a dog called cat, badly": ([(1, [220, 0, 100, 100], 0.8)], [0, *[HALF / 2] * 4, 1]),
    "a bad box": ([(2, [250, 0, 100, 100], 0.8)], [0, 0, *[HALF / 2] * 3, 1]),
    "a duplicate": (
        [
            (2, [200, 0, 100, 100], 0.9),
            (2, [200, 0, 100, 90], 0.8),
            (2, [400, 0, 100, 100], 0.7),
        ],
        # precision is 1 up to a recall of a half, then 2/3
        [(51 + 50 * 2 / 3) / 202] * 3 + [0.5, 0.5, 1],
    ),
    "background first": (
        [(1, [0, 300, 50, 50], 0.9), (1, [0, 0, 100, 100], 0.8)],
        [0.25, 0.25, 0.25, 0.25, 0.5, 1],
    ),
}


@pytest.mark.parametrize(("found", "expected"), SCENES.values(), ids=SCENES)
def test_each_rung_mends_one_thing(tmp_path: Path, found: list[Any], expected: list[float]) -> None:
    rungs = ladder_of(DOCUMENT, scene(found), tmp_path)
    assert [rung.name for rung in rungs] == list(RUNGS)
    np.testing.assert_allclose([rung.ap50 for rung in rungs], expected, atol=1e-12)
    assert all(rung.ap <= rung.ap50 + 1e-12 for rung in rungs)


@pytest.mark.parametrize("seed", range(3))
def test_rungs_of_random_boxes_rise_from_the_ap_to_1(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    document = random_truth(rng)
    results = random_results(rng, document)
    for each in (*document["annotations"], *results):
        del each["segmentation"]
    truth = read_ground_truth(write(tmp_path / "truth.json", document))
    table = match(found_in(results, truth, iou_type="bbox"), truth, iou_type="bbox")
    rungs = oracle_ladder(table)
    assert rungs[0].ap == pytest.approx(np.nanmean(average_precision(table)), abs=1e-12)
    after_boxes = [rung.ap for rung in rungs[2:]]
    assert after_boxes == sorted(after_boxes)
    assert after_boxes[-1] == 1
    same = with_labels(table, table.det_label)
    np.testing.assert_array_equal(same.matched, table.matched)


def test_no_objects(tmp_path: Path) -> None:
    rungs = ladder_of(
        {
            **DOCUMENT,
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1}
            ],
        },
        scene([(1, [0, 0, 9, 9], 0.5)]),
        tmp_path,
    )
    assert all(math.isnan(rung.ap) for rung in rungs)
    assert json.loads(json.dumps(ladder_as_dict(tuple(rungs)), allow_nan=False))[0]["ap"] is None
