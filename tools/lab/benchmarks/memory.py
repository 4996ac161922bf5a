"""Benchmark: memory of the loader's worker processes, at the size of COCO's training set."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch

from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.dataset import CocoDetection
from engine.loader import BatchPart, read_batches, training_batches
from engine.paths import read_text
from engine.schema import LoaderConfig
from tools.lab.benchmarks.images import coco_document
from tools.lab.benchmarks.measure import Row
from tools.lab.benchmarks.settings import Settings

Result = TypeVar("Result")

COCO_IMAGES, COCO_ANNOTATIONS = 118_287, 860_001
"""Counts of instances_train2017.json."""


def worker_memory(settings: Settings) -> list[Row]:
    """Measure the memory of all processes over one epoch with four workers.

    Shared pages are counted once (PSS). The JSON is parsed by another process beforehand, because
    this one would keep the memory that it has freed.
    """
    folder, workers = settings.folder, 4
    size = run_in_new_process(_write_and_open, folder, 1000 if settings.small else COCO_ANNOTATIONS)
    settings.log(f"wrote {size / 1e6:.0f} MB of annotations")
    data = _open(folder)
    settings.log(f"{len(data)} images, {len(data.annotations.boxes)} objects, {workers} workers")
    batch_size = min(64, len(data))
    plan = training_batches(data.groups, batch_size=batch_size, seed=0)
    epoch = (BatchPart(next(plan)) for _ in range(len(data) // batch_size))
    loader, device = LoaderConfig(workers=workers), torch.device("cpu")
    # the memory after the first batch and after each 100 more
    batches = read_batches(data, epoch, config=loader, device=device, substitute=True)
    sizes = [total_pss_mb() for number, _ in enumerate(batches) if number % 100 == 0]
    return [
        Row("all processes, most of an epoch", max(sizes), "MB", 1200, smaller_is_better=True),
        Row("growth over the epoch", max(sizes) - sizes[0], "MB", 20, 0, smaller_is_better=True),
    ]


def run_in_new_process(work: Callable[..., Result], *arguments: object) -> Result:
    """Return work(*arguments) from a new process, so that this one keeps none of its memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _write_and_open(folder: Path, annotations: int) -> int:
    size = write_json(folder, annotations=annotations)
    _open(folder)  # also writes the cached copy, which later readers map
    return size


def _open(folder: Path) -> CocoDetection:
    split = SplitConfig(images=str(folder), annotations=str(folder / "train.json"))
    config = DataConfig(train=split, augment=AugmentConfig(short_sides=(32,)))
    return CocoDetection(split, config=config, training=True)


def write_json(folder: Path, *, annotations: int) -> int:
    """Write one small image, and a train.json that lists it as many images; return its bytes.

    The ratio of images to annotations is COCO's, and every annotation has a polygon.
    """
    cv2.imwrite(str(folder / "0.jpg"), np.full((32, 32, 3), 128, np.uint8))
    count = max(1, round(annotations * COCO_IMAGES / COCO_ANNOTATIONS))
    objects = [
        {
            "id": i,
            "image_id": i % count,
            "category_id": i % 80 + 1,
            "bbox": [i % 8, i % 11, 20, 20.5],
            "area": 410 - i % 3,
            "iscrowd": int(i % 100 == 0),
            "segmentation": [[4.25, 4.5] * 22],
        }
        for i in range(annotations)
    ]
    content = coco_document([(32, 32)] * count, objects, num_classes=80, file_name="0.jpg")
    return (folder / "train.json").write_text(json.dumps(content))


def total_pss_mb() -> float:
    """Return the proportional set size (PSS) of this process and its children, in MB."""
    own = os.getpid()
    children = read_text(f"/proc/{own}/task/{own}/children").split()
    rollups = [read_text(f"/proc/{pid}/smaps_rollup") for pid in (own, *children)]
    # kB in the line "Pss: 1234 kB"
    return sum(int(text.split("Pss:")[1].split()[0]) for text in rollups) / 1024
