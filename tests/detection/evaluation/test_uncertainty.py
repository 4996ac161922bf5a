"""Intervals and paired differences: resamples by hand, known populations, real annotations."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.evaluation.coco_backends import accumulate
from detection.evaluation.ground_truth import read_ground_truth
from detection.evaluation.matching import MatchTable, average_precision, match
from detection.evaluation.uncertainty import (
    Spread,
    as_dict,
    bootstrap,
    draw_weights,
    intervals,
    mean_difference,
    paired_difference,
    spread,
    weighted_ap,
)
from engine.errors import UserError
from tests.detection.evaluation.coco_documents import make_document, write
from tests.detection.evaluation.simulated_runs import simulate
from tests.detection.evaluation.test_coco_backends import random_results, random_truth
from tests.detection.evaluation.test_matching import found_in


def repeated(entries: list[dict[str, Any]], weights: dict[int, int]) -> list[dict[str, Any]]:
    """Return entries of images, each as often as its image was drawn, as images of their own.

    Images keep their order, as ties of scores are resolved by it.
    """
    starts = dict(
        zip(sorted(weights), np.cumsum([0, *(weights[i] for i in sorted(weights))]), strict=False)
    )
    return [
        {**each, "image_id": int(starts[each["image_id"]]) + copy}
        for each in entries
        for copy in range(weights[each["image_id"]])
    ]


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_the_ap_of_the_images_drawn(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    document = random_truth(rng)
    for each in document["annotations"]:
        del each["segmentation"]
    results = random_results(rng, document)
    for each in results:
        del each["segmentation"]
        each["score"] = float(rng.random())  # the order of equal ones in an image is anybody's
    truth = read_ground_truth(write(tmp_path / "truth.json", document))
    table = match(found_in(results, truth, iou_type="bbox"), truth, iou_type="bbox")
    weights = draw_weights(len(table.image_ids), resamples=5, seed=seed)
    assert weights.sum(axis=1).tolist() == [len(table.image_ids)] * 5
    got = weighted_ap(table, weights)
    for row, ap in zip(weights, got, strict=True):
        drawn = dict(zip(table.image_ids.tolist(), row.tolist(), strict=True))
        annotations = repeated(document["annotations"], drawn)
        resample = {
            **document,
            "images": [{"id": i} for i in range(int(row.sum()))],
            "annotations": [{**each, "id": i + 1} for i, each in enumerate(annotations)],
        }
        path = write(tmp_path / "resample.json", resample)
        judged = read_ground_truth(path)
        found = found_in(repeated(results, drawn), judged, iou_type="bbox")
        precision = accumulate(found, judged, iou_type="bbox", backend="pycocotools").precision
        precision = precision[..., 0, 2]
        expected = np.where(precision < 0, np.nan, precision).mean(axis=1)
        np.testing.assert_allclose(ap, expected, rtol=0, atol=1e-12)


def test_weights_of_one_give_the_ap_itself() -> None:
    table = simulate(0, 200)
    ones = np.ones((2, 200), np.uint8)
    for ap in weighted_ap(table, ones):
        np.testing.assert_allclose(ap, average_precision(table), rtol=0, atol=1e-12)


def test_a_seed_gives_the_same_interval_and_another_one_another() -> None:
    table = simulate(0, 50)
    first, same, other = (
        intervals(bootstrap(table, resamples=100, seed=seed)) for seed in (0, 0, 1)
    )
    assert first == same != other
    assert list(first)[:3] == ["ap", "ap/class 0", "ap/class 1"]
    for each in first.values():
        assert 0 <= each.low < each.value <= each.high <= 1
    mean = (first["ap50/class 0"].value + first["ap50/class 1"].value) / 2
    assert first["ap50"].value == pytest.approx(mean, abs=1e-12)


def test_classes_without_objects_and_runs_without_detections(tmp_path: Path) -> None:
    truth = read_ground_truth(write(tmp_path / "truth.json", make_document()))
    table = match(found_in([], truth, iou_type="bbox"), truth, iou_type="bbox")
    numbers = intervals(bootstrap(table, resamples=20))
    assert numbers["ap"] == numbers["ap50/kite"] == (0.0, 0.0, 0.0)
    assert all(map(math.isnan, numbers["ap/dog"]))
    assert json.loads(json.dumps(as_dict(numbers), allow_nan=False))["ap/dog"]["low"] is None
    none = truth.within({0})  # an image without objects
    table = match(found_in([], none, iou_type="bbox"), none, iou_type="bbox")
    difference = paired_difference(table, table, resamples=20)["ap"]
    assert all(map(math.isnan, difference))


@pytest.mark.extended
def test_intervals_hold_the_true_value_in_95_of_100_data_sets() -> None:
    ap = average_precision(simulate(10**6, 400_000))
    truth = {
        "ap": ap.mean(),
        "ap50": ap[0].mean(),
        "ap75": ap[5].mean(),
        "ap/class 0": ap[:, 0].mean(),
    }
    num_sets = 400
    held = dict.fromkeys(truth, 0)
    for seed in range(num_sets):
        numbers = intervals(bootstrap(simulate(seed, 500), resamples=300, seed=seed))
        for name, value in truth.items():
            held[name] += numbers[name].low <= value <= numbers[name].high
    shares = {name: 100 * count / num_sets for name, count in held.items()}
    assert all(93 <= share <= 97 for share in shares.values()), shares


@pytest.mark.extended
def test_of_two_equal_detectors_few_are_told_apart() -> None:
    p_values = []
    for seed in range(200):
        base = simulate(seed, 200)
        runs = (reshuffled(base, 2 * seed), reshuffled(base, 2 * seed + 1))
        p_values.append(paired_difference(*runs, resamples=200)["ap"].p_value)
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08


def reshuffled(table: MatchTable, seed: int) -> MatchTable:
    """Return a run with noise added to the scores, as from another training."""
    rng = np.random.default_rng(seed)
    scores = table.det_score + rng.normal(0, 0.5, len(table.det_score))
    order = np.lexsort((table.det_image, -scores, table.det_label))
    return replace(
        table,
        det_image=table.det_image[order],
        det_score=scores[order],
        matched=table.matched[:, order],
    )


def bccd_results(document: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """A fair detector: nine in ten objects with shaken boxes, and one wrong box in five."""
    results = []
    for each in document["annotations"]:
        x, y, width, height = each["bbox"]
        dx, dy = rng.normal(0, 0.06, 2).tolist()
        box = [x + dx * width, y + dy * height, width, height]
        is_wrong = rng.random() < 0.2
        if is_wrong:
            box = [*rng.uniform(0, 300, 2).tolist(), width, height]
        if is_wrong or rng.random() < 0.9:
            score = float(rng.beta(2, 3) if is_wrong else rng.beta(5, 2))
            results.append({**{k: each[k] for k in ("image_id", "category_id")}, "bbox": box})
            results[-1]["score"] = score
    return results


def test_a_twentieth_of_the_boxes_dropped_is_told_on_bccd(data_dir: Path) -> None:
    path = data_dir / "bccd/annotations/val.json"
    document, rng = json.loads(path.read_text()), np.random.default_rng(0)
    truth, results = read_ground_truth(path), bccd_results(document, rng)
    run = match(found_in(results, truth, iou_type="bbox"), truth, iou_type="bbox")
    right = run.det_row[run.is_true[0]]
    dropped = set(rng.choice(right, size=len(results) // 20, replace=False).tolist())
    fewer = [each for row, each in enumerate(results) if row not in dropped]
    other = match(found_in(fewer, truth, iou_type="bbox"), truth, iou_type="bbox")
    for name, each in paired_difference(run, other).items():
        if "/" not in name:
            assert each.value < 0
            assert each.p_value < 0.05
            assert each.low < each.high < 0
    for each in paired_difference(run, run).values():
        assert (each.value, each.low, each.high, each.p_value) == (0, 0, 0, 1)


def test_the_difference_is_antisymmetric() -> None:
    first = simulate(1, 100)
    there, back = (
        paired_difference(*pair, resamples=50)["ap"]
        for pair in ((first, reshuffled(first, 0)), (reshuffled(first, 0), first))
    )
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high, abs=1e-12)
    assert there.p_value == back.p_value


def test_difference_of_groups_is_that_of_their_means_on_the_same_resamples() -> None:
    base = simulate(1, 100)
    first, second = ([reshuffled(base, 2 * i + side) for i in range(3)] for side in (0, 1))
    groups = mean_difference(first, second, resamples=50)["ap"]
    pairs = [
        paired_difference(*pair, resamples=50)["ap"] for pair in zip(first, second, strict=True)
    ]
    assert groups.value == pytest.approx(np.mean([pair.value for pair in pairs]), abs=1e-12)
    weights = draw_weights(100, resamples=50, seed=0)
    drawn = [
        np.mean([weighted_ap(run, weights).mean(axis=(1, 2)) for run in group], axis=0)
        for group in (first, second)
    ]
    assert groups.low == pytest.approx(np.quantile(drawn[1] - drawn[0], 0.025), abs=1e-12)
    # three runs against one: an ensemble
    other = mean_difference(first, [base], resamples=50)["ap"]
    assert other.first == groups.first
    assert other.second == paired_difference(base, base, resamples=5)["ap"].second


def test_runs_on_other_annotations_are_refused() -> None:
    first = simulate(0, 50)
    for other, message in (
        (simulate(0, 60), "the same images, got 50 and 60; 0 are only in the first and 10"),
        (replace(first, names=("class 0", "cat")), "the same classes, got 2 and 2; 1 are only"),
        (simulate(1, 50), "the same objects"),
        (replace(first, iou_type="segm"), "expected boxes twice or masks twice"),
    ):
        with pytest.raises(UserError, match=message):
            paired_difference(first, other)
        with pytest.raises(UserError, match=message):
            mean_difference([first, first], [first, other])


def test_spread_is_the_standard_deviation_of_a_sample() -> None:
    assert spread([0.25, 0.5, 0.75]) == Spread(0.5, 0.25, 3)
    mean, std, num_runs = spread([0.5])
    assert (mean, num_runs) == (0.5, 1)
    assert math.isnan(std)
