import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from detection.data.coco import read_coco
from detection.evaluation.coco_ap import SUMMARY, CocoEvaluator, score_file
from detection.evaluation.ground_truth import ground_truth_of, read_ground_truth
from detection.structures import DetectionBatch, Detections, ImageBatch, Targets
from engine.errors import UserError
from tests.detection.evaluation.coco_documents import CLASSES, NUM_IMAGES, make_document, write


def make_detections(document: dict[str, Any], seed: int = 1) -> list[Detections]:
    """Shaken copies of the truth and boxes from nowhere, with ties among the scores."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for image in document["images"]:
        own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = torch.cat([boxes, boxes.flip(0), torch.tensor([[5.0, 6.0, 70.0, 90.0]])])
        boxes += torch.randn(boxes.shape, generator=generator) * 4
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        own_labels = [CLASSES.category_ids.index(a["category_id"]) for a in own]
        labels = torch.tensor([*own_labels, *own_labels[::-1], 1])
        scores = (torch.rand(len(boxes), generator=generator) * 20).round() / 20
        order = scores.argsort(descending=True, stable=True)
        found.append(Detections(boxes[order], scores[order], labels[order]))
    return found


def make_batch(image_ids: list[int]) -> DetectionBatch:
    size = len(image_ids)
    sizes = torch.full((size, 2), 32)
    return DetectionBatch(
        ImageBatch(
            torch.zeros(size, 3, 32, 32, dtype=torch.uint8),
            sizes,
            sizes,
            torch.tensor(image_ids),
            torch.zeros(size, dtype=torch.int64),
        ),
        Targets(
            torch.zeros(size, 1, 4),
            torch.zeros(size, 1, dtype=torch.int64),
            torch.zeros(size, 1, dtype=torch.bool),
            torch.zeros(size, 1, dtype=torch.bool),
        ),
    )


def evaluated(
    path: Path, found: list[Detections], *, order: list[int], processes: int = 1
) -> tuple[CocoEvaluator, dict[str, float]]:
    """Evaluate images in `order`, two in a batch, dealt out to some processes."""
    known = read_ground_truth(path)
    evaluators = [CocoEvaluator(known, CLASSES, range(NUM_IMAGES)) for _ in range(processes)]
    for start in range(0, len(order), 2):
        ids = order[start : start + 2]
        evaluator = evaluators[start // 2 % processes]
        evaluator.update(make_batch(ids), [found[i] for i in ids])
    return evaluators[0], evaluators[0].compute([each.state() for each in evaluators])


def plain_pycocotools(truth: Path, results: Path) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        judge = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    numbers: list[float] = judge.stats.tolist()
    return numbers


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco128_has_the_expected_numbers(data_dir: Path, iou_type: str) -> None:
    folder = data_dir / "coco128"
    score = score_file(
        folder / "results" / f"{iou_type}.json",
        folder / "annotations" / "instances_train2017.json",
        named_images=True,
    )
    expected = json.loads((folder / "results" / "expected.json").read_text())[iou_type]
    assert [score.metrics[name] for name in SUMMARY] == pytest.approx(expected, abs=1e-6)
    assert score.metrics["num_images"] == 43
    assert score.scores[0].iou_type == iou_type


@pytest.mark.parametrize("seed", range(3))
def test_equals_one_call_of_pycocotools(tmp_path: Path, seed: int) -> None:
    document = make_document(seed)
    truth = write(tmp_path / "truth.json", document)
    evaluator, metrics = evaluated(truth, make_detections(document), order=list(range(NUM_IMAGES)))
    evaluator.write(tmp_path)
    expected = plain_pycocotools(truth, tmp_path / "detections.json")
    assert [metrics[name] for name in SUMMARY] == expected
    per_class = [metrics[f"ap/{name}"] for name in ("person", "kite")]
    assert np.mean(per_class) == pytest.approx(metrics["ap"])
    assert math.isnan(metrics["ap/dog"])  # detected, but not in the truth
    assert 0.1 < metrics["ap"] < 0.9


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_order_and_processes_change_nothing(tmp_path: Path, processes: int) -> None:
    document = make_document()
    truth = write(tmp_path / "truth.json", document)
    found = make_detections(document)
    _, expected = evaluated(truth, found, order=list(range(NUM_IMAGES)))
    order = torch.randperm(NUM_IMAGES).tolist()
    _, metrics = evaluated(truth, found, order=order, processes=processes)
    np.testing.assert_equal(metrics, expected)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "expected 9 images, each once, got 8: some are missing"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 0], "got 10: some are repeated"),
    ],
    ids=["missing", "twice"],
)
def test_each_image_counts_once(tmp_path: Path, order: list[int], message: str) -> None:
    document = make_document()
    truth = write(tmp_path / "truth.json", document)
    with pytest.raises(AssertionError, match=message):
        evaluated(truth, make_detections(document), order=order)


def test_skipped_images_count_as_without_detections(tmp_path: Path) -> None:
    document = make_document()
    truth = write(tmp_path / "truth.json", document)
    found = make_detections(document)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    _, expected = evaluated(truth, [*found[:-1], nothing], order=list(range(NUM_IMAGES)))
    evaluator = CocoEvaluator(
        read_ground_truth(truth), CLASSES, range(NUM_IMAGES), allow_missing=True
    )
    evaluator.update(make_batch(list(range(NUM_IMAGES - 1))), found[:-1])
    np.testing.assert_equal(evaluator.compute([evaluator.state()]), expected)


def test_own_results_file_scores_the_same(tmp_path: Path) -> None:
    document = make_document()
    truth = write(tmp_path / "truth.json", document)
    evaluator, metrics = evaluated(truth, make_detections(document), order=list(range(NUM_IMAGES)))
    evaluator.write(tmp_path)
    np.testing.assert_equal(score_file(tmp_path / "detections.json", truth).metrics, metrics)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written.pop("ap/dog") is None
    assert written.pop("engine") == "pycocotools"
    assert written == {name: value for name, value in metrics.items() if name != "ap/dog"}
    results = json.loads((tmp_path / "detections.json").read_text())
    assert {entry["category_id"] for entry in results} == set(CLASSES.category_ids)


def test_no_detections_score_zero(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", make_document())
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    evaluator, metrics = evaluated(truth, [nothing] * NUM_IMAGES, order=list(range(NUM_IMAGES)))
    evaluator.write(tmp_path)
    assert metrics["ap"] == metrics["ar100"] == metrics["ap/person"] == 0
    assert metrics["num_detections"] == 0
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert score_file(tmp_path / "detections.json", truth).metrics["ap"] == 0


def test_missing_fields_are_filled_in_and_counted(tmp_path: Path) -> None:
    document = make_document()
    for annotation in document["annotations"]:
        width, height = annotation["bbox"][2:]
        annotation.update(area=width * height, iscrowd=0)
    full = write(tmp_path / "full.json", document)
    detections = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.5}
        for a in document["annotations"][::2]
    ]
    results = write(tmp_path / "results.json", detections)
    expected = score_file(results, full).scores[0]
    for annotation in document["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    bare = write(tmp_path / "bare.json", document)
    before = bare.read_bytes()
    score = score_file(results, bare).scores[0]
    np.testing.assert_equal(score.metrics, expected.metrics)
    assert bare.read_bytes() == before
    assert "area was missing for 40 objects and filled in" in score.note
    assert "missing" not in expected.note
    named = score_file(write(results, detections[:1]), bare, named_images=True).scores[0]
    image_id = detections[0]["image_id"]
    count = sum(each["image_id"] == image_id for each in document["annotations"])
    assert f"area was missing for {count} objects and filled in" in named.note


def test_object_with_id_zero_can_be_found(tmp_path: Path) -> None:
    document = make_document()
    document["annotations"] = [{**document["annotations"][1], "id": 0}]
    annotation = document["annotations"][0]
    result = {**{k: annotation[k] for k in ("image_id", "category_id", "bbox")}, "score": 1}
    results = write(tmp_path / "results.json", [result])
    score = score_file(results, write(tmp_path / "truth.json", document))
    assert score.metrics["ap"] == pytest.approx(1)


def test_rows_left_out_are_no_truth(tmp_path: Path) -> None:
    document = make_document()
    document["annotations"][3]["bbox"] = [10, 10, float("nan"), 10]
    path = write(tmp_path / "broken.json", document)
    with pytest.raises(UserError, match="annotation 103: bbox: expected finite numbers"):
        read_ground_truth(path)
    for image in document["images"]:
        image["file_name"] = f"{image['id']}.png"
    annotations = read_coco(write(path, document), on_bad_box="skip", for_scoring=True)
    known = ground_truth_of(annotations, with_masks=False)
    assert known.rows.tolist() == [row for row in range(40) if row != 3]
    evaluator = CocoEvaluator(known, CLASSES, range(NUM_IMAGES), allow_missing=True)
    assert evaluator.compute([])["ap"] == 0


def test_table_shows_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = make_document()
    truth = write(tmp_path / "truth.json", document)
    evaluator, metrics = evaluated(truth, make_detections(document), order=list(range(NUM_IMAGES)))
    assert capsys.readouterr().out == ""  # pycocotools is silent
    Console(width=80).print(evaluator.table())
    shown = capsys.readouterr().out
    assert "in percent, by pycocotools" in shown
    assert f"{100 * metrics['ap']:.1f}" in shown
    row = next(line for line in shown.splitlines() if "dog" in line)
    assert row.split("dog")[1].split("│")[1].strip() == "-"
    assert "detections in 9 of 9 images" in shown
