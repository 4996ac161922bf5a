"""Benchmark: `data check`, without images, on annotations of the size of COCO's training set."""

import resource
import statistics
import time
from pathlib import Path

from detection.config import DetectionConfig
from detection.datasets.check.network import NetworkView
from detection.datasets.check.run import Inputs, check_columns, read_inputs
from engine.log import RunLog
from tools.lab.benchmarks.measure import Row
from tools.lab.benchmarks.memory import COCO_ANNOTATIONS, run_in_new_process, write_json
from tools.lab.benchmarks.settings import Settings


def data_check(settings: Settings) -> list[Row]:
    """Measure time and peak memory of a check, in a new process for each round."""
    count = 1000 if settings.small else COCO_ANNOTATIONS
    size = run_in_new_process(_write, settings.folder, count)
    settings.log(f"wrote {size / 1e6:.0f} MB of annotations")
    measured = [
        run_in_new_process(_check, settings.folder / "train.json") for _ in range(settings.rounds)
    ]
    seconds, peaks, found = zip(*measured, strict=True)
    detail = f"{min(seconds):.1f} to {max(seconds):.1f} s; {found[0]} annotations"
    return [
        Row("check", statistics.median(seconds), "s", 30, 15, True, detail),
        Row("check, peak memory", max(peaks), "MB", 2000, smaller_is_better=True),
    ]


def _write(folder: Path, count: int) -> int:
    return write_json(folder, annotations=count)


def _check(path: Path) -> tuple[float, float, int]:
    """Return the seconds of a check, the peak memory of this process in MB, and the annotations."""
    start = time.monotonic()
    network = NetworkView.of(DetectionConfig())
    columns, context = read_inputs(Inputs(path), network=network, log=RunLog(None, is_main=False))
    report = check_columns(columns, context)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from kB
    return time.monotonic() - start, peak, report.annotations
