"""Matching in arrays: pycocotools' average precision, on real, random and degenerate data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.evaluation.coco_backends import accumulate
from detection.evaluation.coco_results import match_results, read_results, table_of_results
from detection.evaluation.detection_table import DetectionTable, IoUType
from detection.evaluation.ground_truth import GroundTruth, read_ground_truth
from detection.evaluation.matching import (
    AREA_RANGES,
    MatchTable,
    average_precision,
    match,
    match_in_range,
)
from detection.ops.boxes import xywh_to_xyxy
from tests.detection.evaluation.coco_documents import make_document, write
from tests.detection.evaluation.test_coco_backends import random_results, random_truth
from tests.reference.boxes import iou

IOU_TYPES: tuple[IoUType, ...] = ("bbox", "segm")


def found_in(
    results: list[dict[str, Any]], ground_truth: GroundTruth, *, iou_type: IoUType
) -> DetectionTable:
    matches = match_results(results, ground_truth, source="results")
    return table_of_results(results, matches, ground_truth, iou_type=iou_type, source="results")[0]


def check_against_pycocotools(found: DetectionTable, ground_truth: GroundTruth) -> MatchTable:
    iou_type: IoUType = "segm" if found.masks else "bbox"
    table = match(found, ground_truth, iou_type=iou_type)
    judge = accumulate(found, ground_truth, iou_type=iou_type, backend="pycocotools")
    for place, area_range in enumerate(AREA_RANGES.values()):
        precision = judge.precision[..., place, 2]
        expected = np.where(precision < 0, np.nan, precision).mean(axis=1)
        got = average_precision(match_in_range(table, area_range))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(table.matched, match_in_range(table, AREA_RANGES["all"]).matched)
    return table


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_real_results(data_dir: Path, iou_type: IoUType) -> None:
    folder = data_dir / "coco128"
    truth = read_ground_truth(folder / "annotations/instances_train2017.json", with_masks=True)
    results = read_results(folder / "results" / f"{iou_type}.json")
    for within in (truth, truth.within({each["image_id"] for each in results})):
        table = check_against_pycocotools(found_in(results, within, iou_type=iou_type), within)
        assert len(table.det_row) == len(results) == 328
        np.testing.assert_array_equal(
            table.category_ids[table.det_label],
            np.array([each["category_id"] for each in results])[table.det_row],
        )
        assert table.gt_ids.tolist() == within.table.ids[table.gt_row].tolist()


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_random_results(tmp_path: Path, seed: int, iou_type: IoUType) -> None:
    # ties of scores, crowds, more than 100 of an image and class, a class without objects
    rng = np.random.default_rng(seed)
    document = random_truth(rng)
    results = random_results(rng, document)
    truth = read_ground_truth(write(tmp_path / "truth.json", document), with_masks=True)
    table = check_against_pycocotools(found_in(results, truth, iou_type=iou_type), truth)
    assert len(table.det_row) < len(results)  # the limit of 100
    check_against_pycocotools(found_in(results[:1], truth, iou_type=iou_type), truth)
    check_against_pycocotools(found_in([], truth, iou_type=iou_type), truth)


@pytest.mark.parametrize("rounded", [0.1, 1.0])
def test_boxes_on_a_grid_tie_in_score_and_overlap(tmp_path: Path, rounded: float) -> None:
    rng = np.random.default_rng(0)
    document = make_document()
    for each in document["annotations"]:
        each["bbox"] = (10 + 10 * rng.integers(0, 4, 4)).astype(float).tolist()
        each["area"] = each["bbox"][2] * each["bbox"][3]
    results = [
        {
            "image_id": int(rng.integers(0, 9)),
            "category_id": int(rng.choice([1, 18, 38])),
            "bbox": (10 + 10 * rng.integers(-1, 4, 4)).astype(float).tolist(),
            "score": float(np.round(rng.random() / rounded) * rounded),
        }
        for _ in range(600)
    ]
    results = [each for each in results if min(each["bbox"][2:]) >= 0]  # some of no width
    truth = read_ground_truth(write(tmp_path / "truth.json", document))
    check_against_pycocotools(found_in(results, truth, iou_type="bbox"), truth)


@pytest.mark.parametrize("kind", ["only crowds", "other images", "huge"])
def test_degenerate_truth(tmp_path: Path, kind: str) -> None:
    document = make_document()
    results = [
        {key: each[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for each in json.loads(json.dumps(document))["annotations"]  # plain floats
    ]
    for each in document["annotations"]:
        if kind == "only crowds":
            each["iscrowd"] = 1
        if kind == "huge":  # beyond COCO's largest area
            each["area"] = 2e10
    truth = read_ground_truth(write(tmp_path / "truth.json", document))
    if kind == "other images":
        truth = truth.within({0})
    table = check_against_pycocotools(found_in(results, truth, iou_type="bbox"), truth)
    assert np.isnan(average_precision(table)).all()
    assert len(table.det_row) == (0 if kind == "other images" else 40)


def test_best_overlaps_are_those_of_all_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    document = random_truth(rng)
    results = random_results(rng, document)
    truth = read_ground_truth(write(tmp_path / "truth.json", document))
    found = found_in(results, truth, iou_type="bbox")
    table = match(found, truth, iou_type="bbox")
    boxes = xywh_to_xyxy(found.boxes[table.det_row])
    np.testing.assert_array_equal(table.det_box, boxes)
    for row, box in enumerate(boxes):
        near = (table.gt_image == table.det_image[row]) & ~table.gt_crowd
        ious = np.where(near, [iou(box, each) for each in table.gt_box], 0.0)
        same = table.gt_label == table.det_label[row]
        np.testing.assert_allclose(table.best_iou_any[row], ious.max(), atol=1e-12)
        np.testing.assert_allclose(table.best_iou_same[row], ious[same].max(initial=0), atol=1e-12)
        best = table.best_any_gt[row]
        assert best == (ious.argmax() if ious.max() > 0 else -1)
