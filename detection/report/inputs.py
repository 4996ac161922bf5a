"""Reading of what a detector's report is made from: annotations and a COCO results file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from detection.evaluation.coco_results import (
    iou_types_of,
    match_results,
    read_results,
    table_of_results,
)
from detection.evaluation.ground_truth import GroundTruth, read_ground_truth
from detection.evaluation.matching import MatchTable, match


@dataclass(frozen=True)
class ScoredResults:
    """A results file, matched with the annotations.

    tables: by `boxes` and `masks`, those that the results and the annotations have; at least one.
    sizes: (I, 2) height and width of the scored images, zeros where unknown. file_names: of the I
    images, empty where unknown. notes: lines on what was scored.
    """

    ground_truth: GroundTruth
    tables: dict[str, MatchTable]
    sizes: np.ndarray
    file_names: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def first(self) -> MatchTable:
        """The boxes if there are any, else the masks with the boxes around them."""
        return next(iter(self.tables.values()))


def read_scored(
    path: Path | str, annotations: Path | str, *, named_images: bool = False
) -> ScoredResults:
    """Read a results file and match it with the annotations, as `score_file` scores it.

    Args:
        path: the results.
        annotations: the COCO JSON.
        named_images: take only images with results, if there are any.

    Raises:
        UserError: a file cannot be read, or a result is malformed or of no annotated image.
    """
    results = read_results(path)
    iou_types = iou_types_of(results)
    need_masks: Literal[True, "if any"] = "if any" if "bbox" in iou_types else True
    ground_truth = read_ground_truth(annotations, with_masks="segm" in iou_types and need_masks)
    matches = match_results(results, ground_truth, source=str(path))
    notes = list(matches.notes)
    named = set(matches.image_ids.tolist())
    all_images = len(ground_truth.image_ids)
    if named_images and named:
        ground_truth = ground_truth.within(named)
        if unscored := all_images - len(named):
            notes.append(f"{unscored} annotated images without results are not scored")
    elif unnamed := all_images - len(named):
        notes.append(
            f"{unnamed} annotated images without results are scored as images without detections"
        )
    if "segm" in iou_types and not ground_truth.with_masks:
        iou_types = ("bbox",)
        notes.append("masks of the results are not scored: the annotations have no masks")
    tables = {}
    for iou_type in iou_types:
        found, lines = table_of_results(
            results, matches, ground_truth, iou_type=iou_type, source=str(path)
        )
        tables["boxes" if iou_type == "bbox" else "masks"] = match(
            found.within(ground_truth.image_ids), ground_truth, iou_type=iou_type
        )
        notes += [line for line in lines if line not in notes]
        if dropped := len(found.scores) - len(next(reversed(tables.values())).det_label):
            notes.append(
                f"{dropped} {'boxes' if iou_type == 'bbox' else 'masks'} are not scored: COCO "
                "takes the best 100 of an image and class"
            )
    image_ids = ground_truth.image_ids.tolist()
    return ScoredResults(
        ground_truth,
        tables,
        np.array([ground_truth.size_of(each) for each in image_ids], np.int64).reshape(-1, 2),
        tuple(ground_truth.file_name_of(each) for each in image_ids),
        tuple(notes),
    )
