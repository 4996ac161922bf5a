"""AP by attributes: parts add up, a part alone equals its own data set, and edges."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from detection.evaluation import breakdown
from detection.evaluation.breakdown import Part
from detection.evaluation.coco_ap import score_file
from detection.evaluation.matching import average_precision
from tests.detection.evaluation.matched_tables import (
    BOX,
    DEGENERATE,
    document_of,
    matched,
    random_table,
    results_of,
    table_of,
)
from tests.reference.boxes import iou


def by_name(parts: list[Part]) -> dict[str, Part]:
    return {part.name: part for part in parts}


def test_size_is_cocos(tmp_path: Path) -> None:
    parts = breakdown.by_size(random_table(tmp_path), score_thresh=0.5)
    judge = score_file(tmp_path / "results.json", tmp_path / "truth.json", backend="pycocotools")
    for part, name in zip(parts, ("ap_small", "ap_medium", "ap_large"), strict=True):
        assert part.ap is not None
        np.testing.assert_allclose(part.ap, judge.metrics[name], atol=1e-12)


def test_objects_of_all_parts_add_up(tmp_path: Path) -> None:
    table = random_table(tmp_path)
    sizes = np.full((len(table.image_ids), 2), 300)
    total = int((~table.gt_crowd).sum())
    found = int(np.isin(np.flatnonzero(~table.gt_crowd), table.matched[0]).sum())
    for parts in (
        breakdown.by_aspect(table, score_thresh=0.2),
        breakdown.by_object_count(table, score_thresh=0.2),
        breakdown.by_overlap(table, score_thresh=0.2),
        breakdown.by_position(table, sizes, score_thresh=0.2),
    ):
        assert sum(part.objects for part in parts) == total
        known = [part for part in parts if part.objects]
        assert round(sum(part.found * part.objects for part in known)) == found
        assert all(part.found_thresh <= part.found for part in known)


def test_one_range_is_everything(tmp_path: Path) -> None:
    table = random_table(tmp_path)
    images = np.zeros(len(table.image_ids))
    first, second = breakdown.by_image(table, images, [1.0], names=("a", "b"), score_thresh=0.5)
    assert first.ap == pytest.approx(np.nanmean(average_precision(table)))
    assert second.objects == 0
    assert math.isnan(second.found)


def test_a_range_of_images_equals_a_data_set_of_these_images(tmp_path: Path) -> None:
    table = random_table(tmp_path)
    some = set(table.image_ids[::2].tolist())
    values = np.isin(table.image_ids, list(some)).astype(float)
    part = breakdown.by_image(table, values, [0.5], names=("no", "yes"), score_thresh=0.5)[1]
    document = json.loads((tmp_path / "truth.json").read_text())
    results = json.loads((tmp_path / "results.json").read_text())
    document["images"] = [each for each in document["images"] if each["id"] in some]
    document["annotations"] = [e for e in document["annotations"] if e["image_id"] in some]
    alone = matched(tmp_path, document, [each for each in results if each["image_id"] in some])
    assert part.ap == pytest.approx(np.nanmean(average_precision(alone)))


def test_attributes_of_boxes(tmp_path: Path) -> None:
    objects = [(0, 1, (0, 0, 20, 90)), (1, 1, (80, 30, 40, 40)), (1, 1, (85, 30, 40, 40))]
    table = table_of(tmp_path, objects, [(0, 1, (0, 0, 20, 90), 0.9)])
    aspects = by_name(breakdown.by_aspect(table, score_thresh=0.5))
    assert (aspects["to 1:2"].objects, aspects["to 1:2"].ap) == (1, 1.0)
    assert (aspects["square"].objects, aspects["square"].ap) == (2, 0.0)
    sizes = np.full((4, 2), (100, 200))
    places = by_name(breakdown.by_position(table, sizes, score_thresh=0.5))
    assert (places["border"].objects, places["centre"].objects) == (1, 2)
    overlaps = by_name(breakdown.by_overlap(table, score_thresh=0.5))
    assert (overlaps["alone"].objects, overlaps["more"].objects) == (1, 2)
    assert overlaps["alone"].ap is None
    assert overlaps["alone"].found == 1.0
    counts = by_name(breakdown.by_object_count(table, score_thresh=0.95))
    assert (counts["1"].objects, counts["2 to 3"].objects) == (1, 2)
    assert (counts["1"].found, counts["1"].found_thresh) == (1.0, 0.0)


def test_neighbour_overlaps_equal_a_loop(tmp_path: Path) -> None:
    table = random_table(tmp_path)
    got, boxes = breakdown.neighbour_overlaps(table), table.gt_box.tolist()
    for row in range(len(boxes)):
        others = [
            iou(boxes[row], boxes[other])
            for other in range(len(boxes))
            if other != row
            and table.gt_image[other] == table.gt_image[row]
            and not (table.gt_crowd[other] or table.gt_crowd[row])
        ]
        assert got[row] == pytest.approx(max(others, default=0.0))


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_runs(name: str, tmp_path: Path) -> None:
    objects, found, crowds = DEGENERATE[name]
    table = table_of(tmp_path, objects, found, crowds=crowds)
    counted = len(objects) - len(crowds)
    sizes = np.zeros((4, 2))  # unknown: no object is anywhere
    assert sum(part.objects for part in breakdown.by_position(table, sizes, score_thresh=0.5)) == 0
    for of in (breakdown.by_size, breakdown.by_aspect, breakdown.by_overlap):
        assert sum(part.objects for part in of(table, score_thresh=0.5)) == counted


def test_wrong_boxes_of_another_shape_cost_nothing(tmp_path: Path) -> None:
    tall = (0, 0, 20, 90)
    document = document_of([(0, 1, BOX)])
    table = matched(tmp_path, document, results_of([(0, 1, BOX, 0.5), (1, 1, tall, 0.9)]))
    parts = by_name(breakdown.by_aspect(table, score_thresh=0.0))
    assert parts["square"].ap == pytest.approx(1.0)
    assert np.nanmean(average_precision(table)) == pytest.approx(0.5, abs=0.01)
