"""TIDE's errors: hotcoco's numbers, and cases whose answer is plain."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pytest

from detection.evaluation.detection_table import IoUType
from detection.evaluation.errors import KINDS, WRONG, TideErrors, errors_as_dict, tide_errors
from detection.evaluation.ground_truth import read_ground_truth
from detection.evaluation.matching import MatchTable, match
from tests.detection.evaluation.coco_documents import write
from tests.detection.evaluation.test_coco_backends import random_results, random_truth
from tests.detection.evaluation.test_matching import IOU_TYPES, found_in

THEIR_NAMES = {
    "localization": "Loc",
    "classification": "Cls",
    "duplicate": "Dupe",
    "background": "Bkg",
    "both": "Both",
    "missed": "Miss",
    "false_positive": "FP",
    "false_negative": "FN",
}


def table_of(
    document: dict[str, Any], results: list[dict[str, Any]], folder: Path, iou_type: IoUType
) -> MatchTable:
    truth = read_ground_truth(write(folder / "truth.json", document), with_masks=iou_type == "segm")
    return match(found_in(results, truth, iou_type=iou_type), truth, iou_type=iou_type)


def check_against_hotcoco(errors: TideErrors, folder: Path, iou_type: IoUType) -> None:
    """Compare with hotcoco on truth.json and results.json of a folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = hotcoco.COCO(str(folder / "truth.json"))
        found = coco.load_res(str(folder / "results.json"))
        evaluator = hotcoco.COCOeval(coco, found, iou_type)
        evaluator.evaluate()
    theirs, lost = evaluator.tide_errors(), errors.lost_ap()
    for name, their_name in THEIR_NAMES.items():
        assert lost[name] == pytest.approx(theirs["delta_ap"][their_name], abs=1e-9), name
        if their_name in theirs["counts"]:
            assert errors.counts[name] == theirs["counts"][their_name], name
    assert np.nanmean(errors.ap) == pytest.approx(theirs["ap_base"], abs=1e-9)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("named", [True, False], ids=["named images", "all images"])
def test_hotcoco_on_real_results(
    data_dir: Path, tmp_path: Path, iou_type: IoUType, named: bool
) -> None:
    folder = data_dir / "coco128"
    document = json.loads((folder / "annotations/instances_train2017.json").read_text())
    results = json.loads((folder / f"results/{iou_type}.json").read_text())
    if named:
        ids = {each["image_id"] for each in results}
        document["images"] = [each for each in document["images"] if each["id"] in ids]
        document["annotations"] = [
            each for each in document["annotations"] if each["image_id"] in ids
        ]
    write(tmp_path / "results.json", results)
    errors = tide_errors(table_of(document, results, tmp_path, iou_type))
    check_against_hotcoco(errors, tmp_path, iou_type)
    assert errors.counts["classification"] > 30
    assert errors.counts["missed"] > 40


@pytest.mark.parametrize("seed", range(4))
def test_hotcoco_on_random_boxes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    document = random_truth(rng)
    for number, each in enumerate(document["annotations"]):
        each["id"] = number + 1
        each["iscrowd"] = 0
    results = random_results(rng, document)
    for each in results:
        each["score"] = float(rng.random())
        del each["segmentation"]
    results = [each for each in results if rng.random() < 0.3]
    write(tmp_path / "results.json", results)
    errors = tide_errors(table_of(document, results, tmp_path, "bbox"))
    assert sum(errors.counts[name] > 0 for name in KINDS) >= 7
    check_against_hotcoco(errors, tmp_path, "bbox")


def scene(boxes: list[tuple[int, list[float], float]]) -> list[dict[str, Any]]:
    return [
        {"image_id": 1, "category_id": category, "bbox": box, "score": score}
        for category, box, score in boxes
    ]


DOCUMENT: dict[str, Any] = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100]},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [200, 0, 100, 100]},
        {"id": 3, "image_id": 1, "category_id": 2, "bbox": [400, 0, 100, 100]},
    ],
}


@pytest.mark.parametrize(
    ("kind", "category", "box"),
    [
        ("localization", 2, [240.0, 0, 100, 100]),
        ("classification", 1, [200.0, 0, 100, 100]),
        ("duplicate", 1, [0.0, 0, 100, 90]),
        ("background", 1, [200.0, 95, 100, 100]),
        ("both", 1, [240.0, 0, 100, 100]),
    ],
)
def test_each_wrong_detection(tmp_path: Path, kind: str, category: int, box: list[float]) -> None:
    results = scene([(1, [0, 0, 100, 100], 0.9), (category, box, 0.8)])
    table = table_of(DOCUMENT, results, tmp_path, "bbox")
    errors = tide_errors(table)
    wrong = int(np.flatnonzero(table.det_score == 0.8)[0])
    assert errors.kind[wrong] == list(WRONG).index(kind)
    assert errors.counts[kind] == errors.counts["false_positive"] == 1
    can_mend = kind in ("localization", "classification")
    assert errors.target[wrong] == (1 if can_mend else -1)
    assert errors.missed.tolist() == [False, not can_mend, True]
    # dogs: 0 of 2 found, or 1 after mending: 51 of the 101 recalls
    dogs = 51 / 101 if can_mend else 0.0
    np.testing.assert_allclose(errors.mended[kind], [1, dogs], atol=1e-12)
    assert errors.lost_ap()[kind] == pytest.approx(dogs / 2, abs=1e-12)


def test_only_the_best_of_two_errors_about_an_object_is_mended(tmp_path: Path) -> None:
    results = scene(
        [(2, [240, 0, 100, 100], 0.7), (2, [230, 0, 100, 50], 0.8), (1, [200, 0, 100, 100], 0.9)]
    )
    errors = tide_errors(table_of(DOCUMENT, results, tmp_path, "bbox"))
    assert errors.counts["localization"] == 2
    # the cat's score is the highest: both others are dropped, and the object stays without one
    np.testing.assert_allclose(errors.mended["localization"], [0, 0])
    np.testing.assert_allclose(errors.mended["classification"], [0, 51 / 101], atol=1e-12)


def test_nothing_found_and_no_objects(tmp_path: Path) -> None:
    errors = tide_errors(table_of(DOCUMENT, [], tmp_path, "bbox"))
    assert errors.counts["missed"] == errors.counts["false_negative"] == 3
    assert errors.lost_ap() == dict.fromkeys(KINDS, 0.0)
    empty = {**DOCUMENT, "annotations": DOCUMENT["annotations"][:1]}
    empty["annotations"] = [{**empty["annotations"][0], "iscrowd": 1}]
    results = scene([(2, [0, 0, 10, 10], 0.5)])
    errors = tide_errors(table_of(empty, results, tmp_path, "bbox"))
    assert all(math.isnan(each) for each in errors.lost_ap().values())
    numbers = json.loads(json.dumps(errors_as_dict(errors), allow_nan=False))
    assert numbers["ap50"] is None
    assert numbers["errors"]["background"]["count"] == 1
