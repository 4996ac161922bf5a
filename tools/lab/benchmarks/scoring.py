"""Benchmark: COCO evaluation of detections, against pycocotools."""

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
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.images import coco_document
from tools.lab.benchmarks.measure import Row, compare
from tools.lab.benchmarks.settings import Settings

NUM_IMAGES, OBJECTS_PER_IMAGE, DETECTIONS_PER_IMAGE = 5000, 7.2, 100
"""As in COCO's val2017."""
CLASSES = ClassMap(tuple(f"class {i}" for i in range(1, 81)), tuple(range(1, 81)))
WIDTH, HEIGHT = 640, 480


def evaluation(settings: Settings) -> list[Row]:
    """Measure the twelve COCO metrics of 500,000 boxes in 5,000 images.

    Both sides start from the `Detections` of every image and from annotations that are already in
    memory, each in its own form.
    """
    num_images = 20 if settings.small else NUM_IMAGES
    objects = make_objects(num_images)
    # object i is in image i modulo num_images, so a stride selects the objects of an image
    found = [make_detections(objects[i::num_images], seed=i) for i in range(num_images)]
    num_found = sum(map(len, found))
    settings.log(f"{len(objects)} objects, {num_found} detections in {num_images} images")
    path = settings.folder / "truth.json"
    sizes = [(HEIGHT, WIDTH)] * num_images
    path.write_text(json.dumps(coco_document(sizes, objects, num_classes=len(CLASSES))))
    truth, peer_truth, batch = (
        read_ground_truth(path),
        read_with_pycocotools(path),
        batch_of(num_images),
    )
    image_ids = batch.image_ids.tolist()

    def ours() -> list[float]:
        evaluator = CocoEvaluator(truth, CLASSES, image_ids, backend="hotcoco")
        evaluator.update(batch, found)
        metrics = evaluator.compute([evaluator.state()])
        return [metrics[name] for name in SUMMARY]

    def peer() -> list[float]:
        return score_with_pycocotools(peer_truth, found)

    for name, got, expected in zip(SUMMARY, ours(), peer(), strict=True):
        if got != expected:
            raise DisagreementError(f"{name}: expected pycocotools' {expected!r}, got {got!r}")
    times = compare(ours, peer, rounds=settings.rounds, log=settings.log)
    work = f"COCO's numbers of {num_found} boxes in {num_images} images"
    return [Row(work, times.ratio, promised=30, aim=60, detail=str(times))]


def make_objects(num_images: int) -> list[dict[str, Any]]:
    """Return COCO annotations of all sizes; 1 in 100 is a crowd.

    Object i is in image i modulo `num_images`. The classes have frequencies 1, 1/2, 1/3 ...
    """
    rng = np.random.default_rng(0)
    count = round(num_images * OBJECTS_PER_IMAGE)
    # log-uniform sides, anywhere inside the image
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    corners = rng.uniform(0, np.array([WIDTH, HEIGHT]) - sides)
    shares = 1 / np.arange(1, len(CLASSES) + 1)
    category_ids = rng.choice(CLASSES.category_ids, size=count, p=shares / shares.sum())
    boxes, areas = np.hstack([corners, sides]), 0.6 * sides.prod(axis=1)
    columns = zip(category_ids.tolist(), boxes.tolist(), areas.tolist(), strict=True)
    return [
        {
            "id": number + 1,
            "image_id": number % num_images,
            "category_id": category_id,
            "bbox": box,
            "area": area,
            "iscrowd": int(number % 100 == 99),
        }
        for number, (category_id, box, area) in enumerate(columns)
    ]


def make_detections(objects: Sequence[Mapping[str, Any]], *, seed: int) -> Detections:
    """Return 100 detections: two jittered copies of each object, the rest random boxes.

    Half of the random boxes have classes of the objects.

    Args:
        objects: annotations of one image; may be empty.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    real = torch.tensor([each["bbox"] for each in objects]).reshape(-1, 4).repeat(2, 1)
    real_labels = torch.tensor([each["category_id"] - 1 for each in objects] * 2, dtype=torch.int64)
    num_noise = DETECTIONS_PER_IMAGE - len(real)
    noise = torch.rand(num_noise, 4, generator=generator)
    noise *= torch.tensor([WIDTH, HEIGHT, WIDTH / 2, HEIGHT / 2])
    noise_labels = torch.randint(len(CLASSES), (num_noise,), generator=generator)
    if len(real):
        half = num_noise // 2
        noise_labels[:half] = real_labels[torch.arange(half) % len(real)]
    # noise relative to the box: width, height, width, height for x, y, width, height
    real += 0.08 * real[:, 2:].repeat(1, 2) * torch.randn(real.shape, generator=generator)
    scores = torch.rand(DETECTIONS_PER_IMAGE, generator=generator)
    scores[len(real) :] *= 0.7  # wrong detections have lower scores on average
    scores, order = scores.sort(descending=True, stable=True)
    boxes, labels = torch.cat([real, noise]), torch.cat([real_labels, noise_labels])
    return Detections(xywh_to_xyxy(boxes.clamp(min=1.0))[order], scores, labels[order])


def batch_of(num_images: int) -> DetectionBatch:
    """Return a batch of images of one pixel: the evaluator needs only their ids."""
    zeros = torch.zeros(num_images, 1, dtype=torch.int64)
    sizes = torch.ones(num_images, 2, dtype=torch.int64)
    ids = torch.arange(num_images)
    return DetectionBatch(
        ImageBatch(torch.zeros(num_images, 3, 1, 1, dtype=torch.uint8), sizes, sizes, ids, ids),
        Targets(torch.zeros(num_images, 1, 4), zeros, zeros.bool(), zeros.bool()),
    )


def read_with_pycocotools(path: Path) -> COCO:
    """Return the annotations of a file as pycocotools reads them, without its printed lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def score_with_pycocotools(annotations: COCO, found: Sequence[Detections]) -> list[float]:
    """Return the twelve COCO metrics.

    The detections are passed as an array (image id, xywh, score, category id), the most
    direct form that pycocotools takes.
    """
    # category ids are labels + 1
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
        evaluator = COCOeval(annotations, annotations.loadRes(results.double().numpy()), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    numbers: list[float] = evaluator.stats.tolist()
    return numbers
