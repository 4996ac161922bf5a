"""AP of an exported detector on the validation images of its run."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from backbones.images import read_image
from detection.config import DetectionConfig
from detection.data.coco import ClassMap, detections_to_coco, read_coco
from detection.data.image_files import image_path
from detection.evaluation.coco_ap import CocoReport, score_file
from detection.structures import Detections
from engine.files import write_file
from engine.log import RunLog
from engine.paths import is_file, is_folder


def can_score(config: DetectionConfig) -> bool:
    """Return whether a run's validation images and annotations are there."""
    val = config.data.val
    return is_file(val.annotations) and is_folder(val.images)


def score_detections(
    detect: Callable[[np.ndarray], Detections],
    config: DetectionConfig,
    classes: ClassMap,
    *,
    results: Path,
    log: RunLog,
    what: str,
) -> CocoReport:
    """Detect objects in a run's validation images and return their scores.

    Args:
        detect: returns the objects of an image (H, W, 3) uint8 RGB.
        config: of the run.
        classes: of the detector.
        results: the detections are written here, as a COCO results file.
        log: shows the progress.
        what: of the progress bar, such as "AP of the file".

    Raises:
        UserError: an image or the annotations cannot be read, or the results cannot be written.
    """
    val = config.data.val
    annotations = read_coco(val.annotations, classes=classes, for_scoring=True)
    names = annotations.file_names
    entries = []
    rows = range(len(annotations.image_ids))
    for row in log.progress(rows, len(rows), what):
        image = read_image(image_path(val.images, names[row]))
        image_id = int(annotations.image_ids[row])
        entries += detections_to_coco(image_id, detect(image), classes)
    write_file(results, json.dumps(entries))
    return score_file(results, val.annotations, backend=config.evaluation.backend)
