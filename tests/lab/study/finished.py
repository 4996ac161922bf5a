"""Files of runs and evaluations as they are when a study has finished them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config import dump_config
from tools.lab.planned_runs import PlannedRun
from tools.lab.study.scoring import Scoring

BOXES = [[10 + 20 * i, 10, 12, 12] for i in range(4)]
"""The objects of each image, xywh."""
IMAGES = 6


def write_annotations(file: Path) -> None:
    """Write a COCO JSON of six images with four objects each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": 1 + i, "file_name": f"{i}.jpg", "height": 96, "width": 96} for i in range(IMAGES)
    ]
    objects = [
        {"id": 1 + 4 * i + j, "image_id": 1 + i, "category_id": 1, "bbox": box}
        for i in range(IMAGES)
        for j, box in enumerate(BOXES)
    ]
    document = {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 1, "name": "cell"}],
    }
    file.write_text(json.dumps(document))


def finish_run(run: PlannedRun[Any], lines: Sequence[dict[str, Any]], **metrics: float) -> None:
    """Write the files of a finished run that a study reads; its speed is 100 images/s."""
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config))
    train = {"kind": "train", "step": 2, "images_per_second": 100.0}
    text = "".join(f"{json.dumps(line)}\n" for line in (train, *lines))
    (run.folder / "metrics.jsonl").write_text(text)
    (run.folder / "origin.txt").write_text("a machine, torch 0.0, commit 123\n")
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    (run.folder / "model.safetensors").write_bytes(run.name.encode())


def finish_scoring(scoring: Scoring, *, found: int) -> None:
    """Write the files of a finished evaluation that finds the first `found` objects of an image.

    AP is 0.25 for each of them, as COCO interpolates it: 26, 51, 76 or 101 of 101 recalls.
    """
    scoring.folder.mkdir(parents=True)
    results = [
        {"image_id": 1 + i, "category_id": 1, "bbox": box, "score": 0.9}
        for i in range(IMAGES)
        for box in BOXES[:found]
    ]
    (scoring.folder / "detections.json").write_text(json.dumps(results))
    ap = (25 * found + 1) / 101
    metrics = {"ap": ap, "ap50": ap, "ap75": ap, "ap_small": None, "engine": "a package"}
    (scoring.folder / "metrics.json").write_text(json.dumps(metrics))
    weights = {
        run.name: hashlib.sha256((run.folder / "model.safetensors").read_bytes()).hexdigest()
        for run in scoring.runs
    }
    record = {
        "overrides": list(scoring.overrides),
        "weights": weights,
        "images_per_second": 5.0,
    }
    (scoring.folder / "scored.json").write_text(json.dumps(record))
