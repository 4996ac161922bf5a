"""AP of exported detectors on the validation images of their run."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.table import Table

from backbones.images import read_image
from detection.data.coco import detections_to_coco, read_coco
from detection.data.image_files import image_path
from detection.evaluation.coco_ap import score_file
from detection.export.detector import ExportedDetector
from detection.export.model import ExportedModel
from detection.export.proof import Runner
from engine.errors import UserError
from engine.files import write_file
from engine.log import RunLog
from engine.paths import is_file, is_folder

_SHOWN = ("ap", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75")


def check_can_score(model: ExportedModel) -> None:
    """Raise UserError unless a model is a detector whose run's validation images are there."""
    if not isinstance(model, ExportedDetector):
        raise UserError("--ap: expected a detector's run, got another task's")
    val = model.config.data.val
    for key, value, found in (
        ("annotations", val.annotations, is_file(val.annotations)),
        ("images", val.images, is_folder(val.images)),
    ):
        if not found:
            raise UserError(
                f"--ap: data.val.{key}: no such file or folder: {value or 'none'}; add "
                f"data.val.{key}=PATH"
            )


def print_ap(
    model: ExportedModel, runners: Mapping[str, Runner], *, results: Path, batch: int, log: RunLog
) -> None:
    """Print the AP of files on the validation images of their run.

    Args:
        model: the detector that the files were made from.
        runners: run the files, by the name of their precision.
        results: the detections of the last one are written here, as a COCO results file.
        batch: images in a batch; all are the same image.
        log: shows the progress.

    Raises:
        UserError: an image or the annotations cannot be read, or the results cannot be written.
    """
    assert isinstance(model, ExportedDetector)
    val = model.config.data.val
    table = Table(title="AP on the run's validation images, in percent")
    annotations = read_coco(val.annotations, classes=model.classes, for_scoring=True)
    ids = annotations.image_ids.tolist()
    for name, run in runners.items():
        entries = []
        for row in log.progress(range(len(ids)), len(ids), f"AP of the file in {name}"):
            image = read_image(image_path(val.images, annotations.file_name(row)))
            images = np.stack([image] * batch)
            found = model.detections(images, run(model.inputs(images)))[0]
            entries += detections_to_coco(ids[row], found, model.classes)
        write_file(results, json.dumps(entries))
        score = score_file(results, val.annotations, backend=model.config.evaluation.backend)
        shown = [key for key in _SHOWN if key in score.metrics]
        if not table.columns:
            for column in ("file", *shown):
                table.add_column(column)
        table.add_row(name, *(f"{100 * score.metrics[key]:.2f}" for key in shown))
    log.table(table)
    log.note(f"detections: {results}")
