"""Measure what the project promises: benchmark.py worker-memory [--annotations N] [--workers N]."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command

IMAGES_PER_ANNOTATION = 118_287 / 860_001  # COCO train2017


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description="Measure one thing by name.")
    parser.add_argument("name", choices=["worker-memory"])
    parser.add_argument("--annotations", type=int, default=860_000, help="objects in the JSON")
    parser.add_argument("--workers", type=int, default=4, help="reading processes")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        worker_memory(Path(folder), annotations=arguments.annotations, workers=arguments.workers)


def worker_memory(folder: Path, *, annotations: int, workers: int) -> None:
    """Read one epoch, and print the memory of all processes, shared pages counted once (PSS)."""
    import torch

    from detection.config import AugmentConfig, DataConfig, SplitConfig
    from detection.data.dataset import CocoDetection
    from engine.loader import Part, read_batches, training_batches
    from engine.log import make_console
    from engine.schema import LoaderConfig

    say = make_console().print
    say(f"wrote {write_json(folder, annotations) / 1e6:.0f} MB of annotations")
    split = SplitConfig(images=str(folder), annotations=str(folder / "train.json"))
    config = DataConfig(train=split, augment=AugmentConfig(short_sides=(32,)))
    data = CocoDetection(split, config=config, training=True)
    say(f"{len(data)} pictures, {len(data.annotations.boxes)} objects, {workers} workers")
    batch_size = min(64, len(data))
    plan = training_batches(data.groups, batch_size=batch_size, seed=0)
    epoch = (Part(next(plan)) for _ in range(len(data) // batch_size))
    loader, device = LoaderConfig(workers=workers), torch.device("cpu")
    batches = read_batches(data, epoch, config=loader, device=device, substitute=True)
    sizes = [proportional_mb() for number, _ in enumerate(batches) if number % 100 == 0]
    say(f"all processes: {sizes[0]:.0f} MB at first, {max(sizes):.0f} MB at most (PSS)")


def write_json(folder: Path, annotations: int) -> int:
    """Write one small picture and a JSON as if of many, polygons and all; return its bytes."""
    import cv2
    import numpy as np

    cv2.imwrite(str(folder / "0.jpg"), np.full((32, 32, 3), 128, np.uint8))
    count = max(1, round(annotations * IMAGES_PER_ANNOTATION))
    images = [{"id": i, "file_name": "0.jpg", "height": 32, "width": 32} for i in range(count)]
    shape = {"bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [[4.25, 4.5] * 22]}
    objects = [
        {"id": i, "image_id": i % count, "category_id": i % 80 + 1, **shape}
        for i in range(annotations)
    ]
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(80)]
    content = {"images": images, "annotations": objects, "categories": categories}
    return (folder / "train.json").write_text(json.dumps(content))


def proportional_mb() -> float:
    """Return the proportional set size of this process and its children, in MB."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (own, *children)]
    return sum(int(text.split("Pss:")[1].split()[0]) for text in rollups) / 1024


if __name__ == "__main__":
    run_command(main)
