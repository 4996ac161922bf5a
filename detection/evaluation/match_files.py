"""Matches of a COCO results file with its annotations, from files to tables."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from detection.evaluation.coco_results import (
    iou_types_of,
    match_results,
    read_results,
    table_of_results,
)
from detection.evaluation.detection_table import DetectionTable, IoUType
from detection.evaluation.ground_truth import GroundTruth, read_ground_truth
from detection.evaluation.matching import MatchTable, match


class MatchedFile(NamedTuple):
    """Boxes, masks or both of a results file: detections and matches of each, and notes on them."""

    ground_truth: GroundTruth
    found: dict[IoUType, DetectionTable]
    matches: dict[IoUType, MatchTable]
    notes: tuple[str, ...]


def match_file(results: Path, annotations: Path, *, named_images: bool = False) -> MatchedFile:
    """Read a COCO results file and match it with the images of its annotations.

    Args:
        results: the results.
        annotations: the COCO JSON.
        named_images: take only images with results, if there are any, instead of all.

    Raises:
        UserError: a file cannot be read, or a result is malformed or not annotated.
    """
    rows = read_results(results)
    kinds = iou_types_of(rows)
    # with boxes as well, annotations without masks are fine: then boxes are matched alone
    need_masks: Literal[True, "if any"] = "if any" if "bbox" in kinds else True
    ground_truth = read_ground_truth(annotations, with_masks="segm" in kinds and need_masks)
    places = match_results(rows, ground_truth, source=str(results))
    notes, named = [*places.notes], np.unique(places.image_ids)
    others = len(ground_truth.image_ids) - len(named)
    if named_images and len(named):
        ground_truth = ground_truth.within(named.tolist())
        notes += [f"{others} annotated images without results are not scored"] if others else []
    elif others:
        notes.append(
            f"{others} annotated images without results are scored as images without detections"
        )
    if "segm" in kinds and not ground_truth.with_masks:
        kinds = ("bbox",)
        notes.append("masks of the results are not scored: the annotations have no masks")
    tables: dict[IoUType, DetectionTable] = {}
    for kind in kinds:
        tables[kind], lines = table_of_results(
            rows, places, ground_truth, iou_type=kind, source=str(results)
        )
        notes += [line for line in lines if line not in notes]
    matches = {kind: match(found, ground_truth, iou_type=kind) for kind, found in tables.items()}
    return MatchedFile(ground_truth, tables, matches, tuple(notes))
