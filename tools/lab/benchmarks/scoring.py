"""COCO's numbers, from a network's detections on: this project's evaluator against pycocotools."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.data.coco import ClassMap
from detection.evaluation.coco_ap import SUMMARY, CocoEvaluator
from detection.evaluation.ground_truth import read_ground_truth
from detection.ops.boxes import xywh_to_xyxy, xyxy_to_xywh
from detection.structures import DetectionBatch, Detections, ImageBatch, Targets
from engine.errors import DisagreementError
from tools.lab.benchmarks.measure import Row, compare
from tools.lab.benchmarks.pictures import coco_document
from tools.lab.benchmarks.settings import Settings

NUM_PICTURES, OBJECTS_PER_PICTURE, DETECTIONS_PER_PICTURE = 5000, 7.2, 100
"""As of COCO's val2017."""
CLASSES = ClassMap(tuple(f"class {i}" for i in range(1, 81)), tuple(range(1, 81)))
WIDTH, HEIGHT = 640, 480


def evaluation(settings: Settings) -> list[Row]:
    """Score 500,000 boxes in 5,000 pictures, twelve numbers.

    Both sides begin with the `Detections` of every picture, and with the truth as each keeps it in
    memory.
    """
    num_pictures = 20 if settings.small else NUM_PICTURES
    objects = make_objects(num_pictures)
    found = [make_detections(objects[i::num_pictures], seed=i) for i in range(num_pictures)]
    num_found = sum(map(len, found))
    settings.say(f"{len(objects)} objects, {num_found} detections in {num_pictures} pictures")
    path = settings.folder / "truth.json"
    sizes = [(HEIGHT, WIDTH)] * num_pictures
    path.write_text(json.dumps(coco_document(sizes, objects, num_classes=len(CLASSES))))
    truth, judge, batch = (
        read_ground_truth(path),
        read_with_pycocotools(path),
        batch_of(num_pictures),
    )
    image_ids = batch.image_ids.tolist()

    def ours() -> list[float]:
        evaluator = CocoEvaluator(truth, CLASSES, image_ids, engine="hotcoco")
        evaluator.update(batch, found)
        metrics = evaluator.compute([evaluator.state()])
        return [metrics[name] for name in SUMMARY]

    def peer() -> list[float]:
        return score_with_pycocotools(judge, found)

    for name, got, expected in zip(SUMMARY, ours(), peer(), strict=True):
        if got != expected:
            raise DisagreementError(f"{name}: expected pycocotools' {expected!r}, got {got!r}")
    times = compare(ours, peer, rounds=settings.rounds, say=settings.say)
    work = f"COCO's numbers of {num_found} boxes in {num_pictures} pictures"
    return [Row(work, times.ratio, promised=30, aim=60, detail=str(times))]


def make_objects(num_pictures: int) -> list[dict[str, Any]]:
    """Return COCO annotations of all sizes, a hundredth of them crowds.

    Number i lies in picture i modulo the number of pictures. The classes are as uneven as 1, 1/2,
    1/3 ...
    """
    rng = np.random.default_rng(0)
    count = round(num_pictures * OBJECTS_PER_PICTURE)
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    corners = rng.uniform(0, np.array([WIDTH, HEIGHT]) - sides)
    shares = 1 / np.arange(1, len(CLASSES) + 1)
    category_ids = rng.choice(CLASSES.category_ids, size=count, p=shares / shares.sum())
    boxes, areas = np.hstack([corners, sides]), 0.6 * sides.prod(axis=1)
    columns = zip(category_ids.tolist(), boxes.tolist(), areas.tolist(), strict=True)
    return [
        {
            "id": number + 1,
            "image_id": number % num_pictures,
            "category_id": category_id,
            "bbox": box,
            "area": area,
            "iscrowd": int(number % 100 == 99),
        }
        for number, (category_id, box, area) in enumerate(columns)
    ]


def make_detections(objects: Sequence[Mapping[str, Any]], *, seed: int) -> Detections:
    """Return 100 boxes: two shaken copies of each object, and noise, half of it of their classes.

    Args:
        objects: of the picture; there may be none.
        seed: of all that is random.
    """
    generator = torch.Generator().manual_seed(seed)
    real = torch.tensor([each["bbox"] for each in objects]).reshape(-1, 4).repeat(2, 1)
    real_labels = torch.tensor([each["category_id"] - 1 for each in objects] * 2, dtype=torch.int64)
    num_noise = DETECTIONS_PER_PICTURE - len(real)
    noise = torch.rand(num_noise, 4, generator=generator)
    noise *= torch.tensor([WIDTH, HEIGHT, WIDTH / 2, HEIGHT / 2])
    noise_labels = torch.randint(len(CLASSES), (num_noise,), generator=generator)
    if len(real):
        half = num_noise // 2
        noise_labels[:half] = real_labels[torch.arange(half) % len(real)]
    real += 0.08 * real[:, 2:].repeat(1, 2) * torch.randn(real.shape, generator=generator)
    scores = torch.rand(DETECTIONS_PER_PICTURE, generator=generator)
    scores[len(real) :] *= 0.7
    scores, order = scores.sort(descending=True, stable=True)
    boxes, labels = torch.cat([real, noise]), torch.cat([real_labels, noise_labels])
    return Detections(xywh_to_xyxy(boxes.clamp(min=1.0))[order], scores, labels[order])


def batch_of(num_pictures: int) -> DetectionBatch:
    """Return a batch with the ids of all pictures, of one pixel each."""
    zeros = torch.zeros(num_pictures, 1, dtype=torch.int64)
    sizes = torch.ones(num_pictures, 2, dtype=torch.int64)
    ids = torch.arange(num_pictures)
    return DetectionBatch(
        ImageBatch(torch.zeros(num_pictures, 3, 1, 1, dtype=torch.uint8), sizes, sizes, ids, ids),
        Targets(torch.zeros(num_pictures, 1, 4), zeros, zeros.bool(), zeros.bool()),
    )


def read_with_pycocotools(path: Path) -> COCO:
    """Return the truth as pycocotools reads it."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def score_with_pycocotools(truth: COCO, found: Sequence[Detections]) -> list[float]:
    """Return the twelve numbers; the detections go in as an array, the shortest of its ways."""
    counts = torch.tensor([len(each) for each in found])
    results = torch.cat(
        [
            torch.arange(len(found)).repeat_interleave(counts)[:, None],
            xyxy_to_xywh(torch.cat([each.boxes for each in found])),
            torch.cat([each.scores for each in found])[:, None],
            torch.cat([each.labels for each in found])[:, None] + 1,
        ],
        dim=1,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(truth, truth.loadRes(results.double().numpy()), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    numbers: list[float] = judge.stats.tolist()
    return numbers
