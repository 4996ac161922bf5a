"""Benchmark: time and memory of a report on 500,000 detections in 5,000 images."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from detection.data.coco import detections_to_coco
from tools.lab import REPOSITORY
from tools.lab.benchmarks.images import coco_document
from tools.lab.benchmarks.measure import Row
from tools.lab.benchmarks.scoring import (
    CLASSES,
    HEIGHT,
    NUM_IMAGES,
    WIDTH,
    make_detections,
    make_objects,
)
from tools.lab.benchmarks.settings import Settings

COMMAND = REPOSITORY / "tools" / "report.py"


def report(settings: Settings) -> list[Row]:
    """Measure the command from start to end, with boxes as many as in COCO's val2017, no images."""
    num_found = write_files(settings.folder, num_images=20 if settings.small else NUM_IMAGES)
    settings.log(f"{num_found} detections")
    measured = [run_command(settings.folder) for _ in range(1 if settings.small else 3)]
    seconds, of_processor, memory = zip(*measured, strict=True)
    size = (settings.folder / "report.html").stat().st_size / 1e6
    times, work_times = (
        ", ".join(f"{each:.0f}" for each in column) for column in (seconds, of_processor)
    )
    detail = f"rounds: {times} s; of the processor: {work_times} s"
    work = f"report of {num_found} detections"
    return [
        Row(work, sorted(seconds)[len(seconds) // 2], "s", 60, 30, True, detail),
        Row("its memory at most", max(memory), "GB", 3, 1.5, True),
        Row("its page", size, "MB", 15, 5, True),
    ]


def write_files(folder: Path, *, num_images: int) -> int:
    """Write truth.json and results.json; return the number of detections."""
    objects = make_objects(num_images)
    sizes = [(HEIGHT, WIDTH)] * num_images
    document = coco_document(sizes, objects, num_classes=len(CLASSES))
    (folder / "truth.json").write_text(json.dumps(document))
    results = [
        entry
        for image in range(num_images)
        for entry in detections_to_coco(
            image, make_detections(objects[image::num_images], seed=image), CLASSES
        )
    ]
    (folder / "results.json").write_text(json.dumps(results))
    return len(results)


def run_command(folder: Path) -> tuple[float, float, float]:
    """Return the seconds, those of the processor, and the largest memory in GB of one call.

    Raises:
        RuntimeError: the command failed.
    """
    arguments = ["results.json", "data.val.annotations=truth.json"]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(COMMAND), *arguments], cwd=folder, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)  # so that nobody waits for it again
    if process.returncode:
        raise RuntimeError(f"{COMMAND}: exit code {process.returncode}")
    # ru_maxrss is in kilobytes on Linux
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6
