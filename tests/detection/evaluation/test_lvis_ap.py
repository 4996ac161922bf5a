"""LVIS's metric: equal to lvis-api's, and each rule by hand."""

import copy
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from detection.data.coco import ClassMap
from detection.data.lvis_json import read_federated_labels
from detection.evaluation.coco_ap import CocoEvaluator, CocoReport, score_file
from detection.evaluation.ground_truth import read_ground_truth
from detection.evaluation.lvis_ap import LVIS_SUMMARY, lvis_notes
from engine.errors import UserError
from tests.detection.evaluation.lvis_miniature import EXPECTED, miniature, without

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
"""lvis-api's names of `LVIS_SUMMARY`."""


def score(
    tmp_path: Path,
    document: dict[str, Any],
    results: Sequence[dict[str, Any]],
    protocols: Sequence[Any] = ("lvis",),
) -> CocoReport:
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "lvis.json").write_text(json.dumps(document))
    return score_file(tmp_path / "results.json", tmp_path / "lvis.json", protocols=protocols)


def check_equal(metrics: dict[str, float], iou_type: str, *, prefix: str = "") -> None:
    expected = json.loads(EXPECTED.read_text())[iou_type]
    for name, key in zip(LVIS_SUMMARY, NAMES, strict=True):
        assert metrics[prefix + name] == pytest.approx(expected[key], rel=1e-9), name


@pytest.mark.parametrize(("iou_type", "other"), [("bbox", "segmentation"), ("segm", "bbox")])
def test_numbers_equal_lvis_apis(tmp_path: Path, iou_type: str, other: str) -> None:
    document, results = miniature()
    check_equal(score(tmp_path, document, without(other, results)).metrics, iou_type)


def test_boxes_and_masks_of_one_file(tmp_path: Path) -> None:
    document, results = miniature()
    metrics = score(tmp_path, document, results).metrics
    check_equal(metrics, "bbox")
    check_equal(metrics, "segm", prefix="mask_")
    # a mean over classes with objects; the last class has none
    by_class = [metrics[f"lvis_ap/class {place}"] for place in range(12)]
    assert math.isnan(by_class.pop())
    assert np.mean(by_class) == pytest.approx(metrics["lvis_ap"])
    plain = score(tmp_path, document, results, protocols=()).metrics
    np.testing.assert_equal({key: metrics[key] for key in plain}, plain)


def small_document() -> dict[str, Any]:
    """Image 1 has a cat. Image 2 has none for certain, and 3 has none by the annotations alone."""
    return {
        "images": [
            {
                "id": image_id,
                "height": 100,
                "width": 100,
                "neg_category_ids": [9] if image_id == 2 else [],
                "not_exhaustive_category_ids": [],
            }
            for image_id in (1, 2, 3)
        ],
        "annotations": [
            {"id": 4, "image_id": 1, "category_id": 9, "bbox": [10, 10, 40, 40], "iscrowd": 0}
        ],
        "categories": [
            {"id": 9, "name": "cat", "frequency": "r"},
            {"id": 5, "name": "dog", "frequency": "f"},
        ],
    }


RIGHT = {"image_id": 1, "category_id": 9, "bbox": [10, 10, 40, 40], "score": 0.5}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"image_id": 2}, 0.5),
        ({"image_id": 3}, 1.0),
        ({"image_id": 1, "bbox": [60, 60, 20, 20]}, 0.5),
    ],
    ids=["negative", "unknown", "positive"],
)
def test_errors_count_where_the_class_is_known(
    tmp_path: Path, wrong: dict[str, Any], expected: float
) -> None:
    results = [RIGHT, {**RIGHT, "score": 0.9, **wrong}]
    metrics = score(tmp_path, small_document(), results).metrics
    assert metrics["lvis_ap"] == metrics["lvis_ap/cat"] == pytest.approx(expected)
    assert metrics["lvis_ap_rare"] == pytest.approx(expected)
    assert math.isnan(metrics["lvis_ap_frequent"])
    assert math.isnan(metrics["lvis_ap/dog"])
    assert metrics["ap"] == pytest.approx(0.5, abs=1e-3)  # COCO counts every error


def test_unmatched_detections_of_an_incomplete_class_are_ignored(tmp_path: Path) -> None:
    document = small_document()
    document["images"][0]["not_exhaustive_category_ids"] = [9]
    results = [RIGHT, {**RIGHT, "score": 0.9, "bbox": [60, 60, 20, 20]}]
    assert score(tmp_path, document, results).metrics["lvis_ap"] == pytest.approx(1)


@pytest.mark.parametrize(("count", "expected"), [(299, 1.0), (300, 0.0)])
def test_300_detections_of_an_image_over_all_classes(
    tmp_path: Path, count: int, expected: float
) -> None:
    # dogs are unknown in the image: they take places, and are then dropped
    others = [{**RIGHT, "category_id": 5, "score": 0.9}] * count
    metrics = score(tmp_path, small_document(), [RIGHT, *others]).metrics
    assert metrics["lvis_ap/cat"] == pytest.approx(expected)


def test_no_detections_in_any_scored_image(tmp_path: Path) -> None:
    assert score(tmp_path, small_document(), []).metrics["lvis_ap"] == 0


def test_table_shows_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, results = miniature()
    report = score(tmp_path, document, results)
    Console(width=120).print(report.table())
    shown = capsys.readouterr().out
    for kind in ("boxes", "masks"):
        assert f"LVIS AP of {kind}, in percent, by hotcoco" in shown
    row = next(line for line in shown.splitlines() if "lvis_ap_rare" in line)
    assert f"{100 * report.metrics['lvis_ap_rare']:.1f}" in row


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("categories", "frequency", None, "category 'cat': frequency: expected r, c or f.*nothing"),
        ("categories", "frequency", "rare", "category 'cat': frequency: expected r, c .*'rare'"),
        ("images", "neg_category_ids", None, "image 1: neg_category_ids: expected a list.*nothing"),
        ("images", "neg_category_ids", [7], r"image 1: neg_category_ids: expected a .* \[7\]"),
        ("images", "not_exhaustive_category_ids", [9.0], r"image 1: not_exhaust.* got \[9.0\]"),
        ("annotations", "iscrowd", 1, "annotation 4: iscrowd: expected 0, as in LVIS.* got 1"),
        ("annotations", "ignore", 1, "annotation 4: ignore: expected 0, as in LVIS.* got 1"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, place: str, key: str, value: Any, message: str
) -> None:
    document = small_document()
    document[place][0][key] = value
    if value is None:
        del document[place][0][key]
    with pytest.raises(UserError, match=f"^{tmp_path}/lvis.json: {message}"):
        score(tmp_path, document, [RIGHT])
    assert score(tmp_path, document, [RIGHT], protocols=()).metrics


def test_labels_are_read_from_odd_json_too(tmp_path: Path) -> None:
    document = copy.deepcopy(small_document())
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(document))
    expected = read_federated_labels(path)
    document["info"] = {"odd": math.nan}  # json reads it, msgspec does not
    path.write_text(json.dumps(document))
    assert read_federated_labels(path) == expected
    assert expected.negative == {1: [], 2: [9], 3: []}
    assert expected.frequencies == {9: "r", 5: "f"}


def test_masks_alone_have_no_other_protocols(tmp_path: Path) -> None:
    document, results = miniature()
    with pytest.raises(UserError, match=r"expected boxes with evaluation.protocols, got masks"):
        score(tmp_path, document, without("bbox", results), protocols=("lvis", "voc07"))


def test_without_hotcoco_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # so that importing it fails
    with pytest.raises(
        UserError, match=r"^evaluation.protocols: lvis: expected hotcoco to be inst"
    ):
        score(tmp_path, small_document(), [RIGHT])


def test_a_network_with_fewer_detections_is_noted() -> None:
    (line,) = lvis_notes(["lvis"], 100)
    assert "model.roi.max_detections=100" in line
    assert lvis_notes(["lvis"], 300) == lvis_notes(["voc07"], 100) == []


@pytest.mark.parametrize(
    ("protocols", "with_masks", "expected"),
    [
        (["voc07"], False, "ap"),
        (["lvis"], False, "lvis_ap"),
        (["voc07", "lvis"], True, "mask_lvis_ap"),
    ],
)
def test_checkpoints_are_ranked_by_it(
    tmp_path: Path, protocols: list[Any], with_masks: bool, expected: str
) -> None:
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(small_document()))
    truth, classes = read_ground_truth(path), ClassMap(("dog", "cat"), (5, 9))
    evaluator = CocoEvaluator(truth, classes, [1], protocols=protocols, with_masks=with_masks)
    assert evaluator.main_metric == expected
