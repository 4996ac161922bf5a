"""Benchmark: loading annotations of the size of COCO's training set, against pycocotools."""

import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO

from detection.data.coco import Annotations, read_coco
from detection.data.coco_cache import SUFFIX
from tools.lab.benchmarks.measure import Row, check_close, compare, mean_seconds
from tools.lab.benchmarks.memory import (
    COCO_ANNOTATIONS,
    run_in_new_process,
    total_pss_mb,
    write_json,
)
from tools.lab.benchmarks.scoring import read_with_pycocotools
from tools.lab.benchmarks.settings import Settings


def annotation_loading(settings: Settings) -> list[Row]:
    """Measure the time of the first and the second load, and the memory of the annotations."""
    size = write_json(settings.folder, annotations=1000 if settings.small else COCO_ANNOTATIONS)
    path = settings.folder / "train.json"
    settings.log(f"wrote {size / 1e6:.0f} MB of annotations")
    _read_without_cache(path)
    _check_same(_read(path), read_with_pycocotools(path))
    loaded, with_polygons = run_in_new_process(_resident_mb, path)
    second = compare(
        lambda: _read(path),
        lambda: read_with_pycocotools(path),
        rounds=settings.rounds,
        log=settings.log,
    )
    first = compare(
        lambda: _read_without_cache(path),
        lambda: read_with_pycocotools(path),
        rounds=settings.rounds,
        log=settings.log,
    )
    memory = "memory of the loaded annotations"
    return [
        Row("second load", second.ratio, promised=20, aim=29, detail=str(second)),
        Row("first load, copy written", first.ratio, detail=str(first)),
        Row(f"{memory}, boxes", loaded, "MB", 250, 175, smaller_is_better=True),
        Row(f"{memory}, every polygon", with_polygons, "MB", 250, 175, smaller_is_better=True),
    ]


def annotation_statistics(settings: Settings) -> list[Row]:
    """Measure `resdet data stats`: the whole command, start of the process included."""
    write_json(settings.folder, annotations=1000 if settings.small else COCO_ANNOTATIONS)
    path = settings.folder / "train.json"
    program = "from detection.commands.main import run; run()"
    options = ["data", "stats", str(path), "--output", str(settings.folder / "stats"), "--force"]
    command = [sys.executable, "-c", program, *options]
    seconds = [
        mean_seconds(lambda: subprocess.run(command, check=True, capture_output=True), calls=1)
        for _ in range(settings.rounds)
    ]
    taken = statistics.median(seconds)
    return [Row("data stats", taken, "s", promised=20, aim=12, smaller_is_better=True)]


def _read(path: Path) -> Annotations:
    """Read the annotations, from their binary copy if there is one."""
    return read_coco(path, cache_from=0)


def _read_without_cache(path: Path) -> Annotations:
    """Delete the binary copy, read the JSON, and write the copy again."""
    path.with_name(path.name + SUFFIX).unlink(missing_ok=True)
    return _read(path)


def _resident_mb(path: Path) -> tuple[float, float]:
    """Return the memory growth in MB after loading, and after also reading all polygons.

    The second number is larger because the polygons are a memory-mapped file: its pages count only
    after they have been read.
    """
    before = total_pss_mb()
    found = _read(path)
    assert found.cache_note is not None
    assert found.cache_note.startswith("read from")
    loaded = total_pss_mb() - before
    polygons = found.segmentations
    # max() reads every page of an array
    for array in (polygons.coordinates, polygons.part_offsets, polygons.object_offsets):
        array.max()
    for packed in (polygons.run_lengths, found.file_names):
        packed.data.max(initial=0)
        packed.offsets.max()
    return loaded, total_pss_mb() - before


def _check_same(found: Annotations, peer: COCO) -> None:
    """Raise DisagreementError if ids, boxes, classes, crowd flags or areas differ."""
    # the peer's annotations in our order: by image, in file order within an image
    entries = [entry for key in found.image_ids.tolist() for entry in peer.imgToAnns[key]]
    owners = np.repeat(found.image_ids, np.diff(found.offsets))
    xywh = np.array([entry["bbox"] for entry in entries])
    category_ids = np.array(found.classes.category_ids)
    for what, ours, theirs in (
        ("image ids", found.image_ids, np.array(list(peer.imgs))),
        ("images of the boxes", owners, np.array([entry["image_id"] for entry in entries])),
        ("boxes", found.boxes, np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)),
        (
            "category ids",
            category_ids[found.labels],
            np.array([entry["category_id"] for entry in entries]),
        ),
        ("crowd flags", found.is_crowd, np.array([entry["iscrowd"] for entry in entries])),
        ("areas", found.areas, np.array([entry["area"] for entry in entries])),
    ):
        check_close(what, torch.from_numpy(ours), torch.from_numpy(theirs), rtol=1e-6, atol=1e-4)
