import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_codec

from detection.config import BackendChoice
from detection.data.coco import ClassMap
from detection.evaluation.coco_ap import (
    SUMMARY,
    CocoEvaluator,
    CocoScore,
    score_file,
)
from detection.evaluation.coco_backends import Backend, choose_backend
from detection.evaluation.ground_truth import GroundTruth, read_ground_truth
from detection.ops.boxes import xywh_to_xyxy
from detection.structures import Detections, RunLengthMasks
from engine.errors import UserError
from tools.lab.benchmarks.scoring import batch_of

SIDE = 300
CATEGORY_IDS = (38, 1, 2**61 + 1, 18)
"""Not in order; the last is found and not in the truth; floating-point numbers hold not all."""
CLASSES = ClassMap(tuple(f"class {i}" for i in sorted(CATEGORY_IDS)), tuple(sorted(CATEGORY_IDS)))
IMAGE_IDS = (5, 2**60 + 3, 2**60 + 2, 0, 77, 12)
"""Of the last one nothing is known, and nothing found."""


def random_box(rng: np.random.Generator) -> list[float]:
    """Return xywh inside the image; sides from 6 to 290 meet all three ranges of area."""
    width, height = np.exp(rng.uniform(np.log(6), np.log(290), 2))
    box: list[float] = [
        *rng.uniform(0, (SIDE - width, SIDE - height)).tolist(),
        float(width),
        float(height),
    ]
    return box


def mask_of(box: list[float], *, counts: str) -> Any:
    """Return a box with a corner cut off, as polygons or run lengths."""
    x, y, width, height = box
    polygon = [x, y, x + width, y, x + width, y + height, x + width / 3, y + height, x, y + 1]
    if counts == "polygon":
        return [polygon]
    code = mask_codec.frPyObjects([polygon], SIDE, SIDE)[0]
    if counts == "compressed":
        return {"size": [SIDE, SIDE], "counts": code["counts"].decode()}
    flat = mask_codec.decode(code).ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=1 - flat[0]))
    runs = np.diff([*starts, len(flat)]).tolist()
    return {"size": [SIDE, SIDE], "counts": [0, *runs] if flat[0] else runs}


def random_truth(rng: np.random.Generator) -> dict[str, Any]:
    """Objects of three of four classes in five of six images, a sixth of them crowds."""
    objects = []
    for number in range(60):
        box = random_box(rng)
        kind = ("polygon", "compressed", "uncompressed")[number % 3]
        objects.append(
            {
                "id": int(number),
                "image_id": int(rng.choice(IMAGE_IDS[:-1])),
                "category_id": int(rng.choice(CATEGORY_IDS[:-1])),
                "bbox": box,
                "area": float(0.8 * box[2] * box[3]),
                "iscrowd": int(number % 6 == 0),
                "segmentation": mask_of(box, counts=kind),
            }
        )
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE} for i in IMAGE_IDS
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS],
        "annotations": objects,
    }


def random_results(rng: np.random.Generator, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Shaken copies of two thirds of the truth, some more than once, and many of nothing.

    Scores are coarse, so that many are equal. The first image has more than 100 of one class.
    """
    results = []
    for number in range(420):
        known = document["annotations"][int(rng.integers(0, 40))]
        image_id, category_id, best = known["image_id"], known["category_id"], 1.0
        box = (np.array(known["bbox"]) * rng.uniform(0.95, 1.05, 4)).tolist()
        box = [min(box[0], SIDE - 5), min(box[1], SIDE - 5), *box[2:]]
        if number % 3 == 0:
            image_id, box = int(rng.choice(IMAGE_IDS[:-1])), random_box(rng)
            category_id, best = int(rng.choice(CATEGORY_IDS)), 0.5
        if number < 130:
            image_id, category_id, best = IMAGE_IDS[0], CATEGORY_IDS[0], 0.3
        results.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "score": round(best * float(rng.random()), 1),
                "segmentation": mask_of(box, counts="compressed"),
            }
        )
    return results


def read(document: dict[str, Any], folder: Path) -> GroundTruth:
    path = folder / "truth.json"
    path.write_text(json.dumps(document))
    return read_ground_truth(path, with_masks=True)


def score_both(
    results: list[dict[str, Any]], document: dict[str, Any], folder: Path, *, named_images: bool
) -> Iterator[tuple[CocoScore, CocoScore]]:
    """Score boxes, then masks, by hotcoco and by pycocotools."""
    paths = folder / "results.json", folder / "truth.json"
    for path, content in zip(paths, (results, document), strict=True):
        path.write_text(json.dumps(content))
    fast, judge = (
        score_file(*paths, named_images=named_images, backend=backend).scores
        for backend in ("hotcoco", "pycocotools")
    )
    return zip(fast, judge, strict=True)


def detections_of(results: list[dict[str, Any]], image_id: int) -> Detections:
    """Return one image's results as a network gives them."""
    own = [each for each in results if each["image_id"] == image_id]
    codes = tuple(each["segmentation"]["counts"].encode() for each in own)
    boxes = torch.tensor([each["bbox"] for each in own]).reshape(-1, 4)
    return Detections(
        boxes=xywh_to_xyxy(boxes),
        scores=torch.tensor([each["score"] for each in own]),
        labels=torch.tensor(
            [CLASSES.category_ids.index(each["category_id"]) for each in own], dtype=torch.int64
        ),
        masks=RunLengthMasks((SIDE, SIDE), codes),
    )


def check_same(fast: CocoScore, judge: CocoScore) -> None:
    """To the last digit: the numbers, by class too, and the whole of the curves."""
    assert (fast.backend, judge.backend) == ("hotcoco", "pycocotools")
    np.testing.assert_equal(fast.metrics, judge.metrics)
    np.testing.assert_array_equal(fast.precision, judge.precision)


@pytest.mark.extended
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_hotcoco_equals_pycocotools_on_real_results(data_dir: Path, iou_type: str) -> None:
    folder = data_dir / "coco128"
    results = folder / "results" / f"{iou_type}.json"
    truth = folder / "annotations" / "instances_train2017.json"
    for named_images in (False, True):
        fast, judge = (
            score_file(results, truth, named_images=named_images, backend=backend).scores[0]
            for backend in ("hotcoco", "pycocotools")
        )
        check_same(fast, judge)


@pytest.mark.parametrize("seed", range(4))
def test_hotcoco_equals_pycocotools(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    document = random_truth(rng)
    results = random_results(rng, document)
    for fast, judge in score_both(results, document, tmp_path, named_images=False):
        check_same(fast, judge)
        summary = [judge.metrics[name] for name in SUMMARY]
        assert 0 < min(summary) < max(summary) < 1
    for part in ([each for each in results if each["image_id"] == IMAGE_IDS[1]], []):
        for fast, judge in score_both(part, document, tmp_path, named_images=True):
            check_same(fast, judge)


def test_hotcoco_equals_pycocotools_without_an_object(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    document = random_truth(rng)
    moved = [{**each, "image_id": IMAGE_IDS[-1]} for each in random_results(rng, document)]
    for fast, judge in score_both(moved, document, tmp_path, named_images=True):
        check_same(fast, judge)
        assert judge.metrics["num_detections"] == len(moved)
        assert all(math.isnan(judge.metrics[name]) for name in SUMMARY)


def test_evaluators_agree_with_each_other_and_with_the_file_they_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    document = random_truth(rng)
    results, truth = random_results(rng, document), read(document, tmp_path)
    batch, found = batch_of(len(IMAGE_IDS)), [detections_of(results, i) for i in IMAGE_IDS]
    batch = replace(batch, images=replace(batch.images, image_ids=torch.tensor(IMAGE_IDS)))
    metrics = {}
    for backend in ("pycocotools", "hotcoco"):
        evaluator = CocoEvaluator(truth, CLASSES, IMAGE_IDS, with_masks=True, backend=backend)
        evaluator.update(batch, found)
        metrics[backend] = evaluator.compute([evaluator.state()])
    np.testing.assert_equal(metrics["hotcoco"], metrics["pycocotools"])
    assert 0 < metrics["hotcoco"]["mask_ap"] != metrics["hotcoco"]["ap"] > 0
    evaluator.write(tmp_path)
    written = score_file(tmp_path / "detections.json", tmp_path / "truth.json")
    np.testing.assert_equal(written.metrics, metrics["hotcoco"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.tensor([0.5, torch.nan])}, "detection 1: score: expected a number"),
        ({"boxes": torch.tensor([[0, 0, 5, torch.inf]] * 2)}, "detection 0: bbox: expected four"),
        ({"masks": RunLengthMasks((3, 4), (b"<", b"<"))}, r"expected size \[300, 300\], got \[3"),
    ],
    ids=["score", "box", "mask"],
)
def test_impossible_detections_are_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    truth = read(random_truth(np.random.default_rng(0)), tmp_path)
    evaluator = CocoEvaluator(truth, CLASSES, [0], with_masks=True, backend="hotcoco")
    code = mask_of([5, 5, 20, 20], counts="compressed")["counts"].encode()
    good = {
        "boxes": torch.tensor([[5.0, 5.0, 25.0, 25.0]] * 2),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([0, 1]),
        "masks": RunLengthMasks((SIDE, SIDE), (code, code)),
    }
    evaluator.update(batch_of(1), [Detections(**{**good, **change})])
    with pytest.raises(UserError, match=f"^detections: .*{message}"):
        evaluator.compute([evaluator.state()])


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize("size", [{}, {"height": None, "width": "?"}], ids=["no size", "no number"])
def test_boxes_need_no_size(tmp_path: Path, size: dict[str, Any], backend: Backend) -> None:
    rng = np.random.default_rng(0)
    document = random_truth(rng)
    results, truth = tmp_path / "results.json", tmp_path / "truth.json"
    boxes = random_results(rng, document)
    for each in boxes:
        del each["segmentation"]
    results.write_text(json.dumps(boxes))
    truth.write_text(json.dumps(document))
    expected = score_file(results, truth, backend=backend).metrics
    truth.write_text(json.dumps({**document, "images": [{"id": i, **size} for i in IMAGE_IDS]}))
    np.testing.assert_equal(score_file(results, truth, backend=backend).metrics, expected)


@pytest.mark.parametrize(
    ("wanted", "final", "expected"),
    [
        ("auto", True, "pycocotools"),
        ("auto", False, "hotcoco"),
        ("pycocotools", False, "pycocotools"),
        ("hotcoco", True, "hotcoco"),
    ],
    ids=["auto at the end", "auto on the way", "the judge", "the fast one"],
)
def test_choice_of_backend(wanted: BackendChoice, final: bool, expected: Backend) -> None:
    assert choose_backend(wanted, final=final) == expected


def test_without_hotcoco(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # so that importing it fails
    assert choose_backend("auto", final=False) == "pycocotools"
    with pytest.raises(UserError, match=r"evaluation.backend: expected hotcoco to be .*, got none"):
        choose_backend("hotcoco", final=False)
