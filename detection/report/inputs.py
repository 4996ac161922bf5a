"""Reading of what a detector's report is made from: annotations and a COCO results file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detection.evaluation.ground_truth import GroundTruth
from detection.evaluation.match_files import match_file
from detection.evaluation.matching import MatchTable

_NAMES = {"bbox": "boxes", "segm": "masks"}


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


def read_scored(results: Path, annotations: Path, *, named_images: bool = False) -> ScoredResults:
    """Read a results file and match it with the annotations.

    Args:
        results: the results.
        annotations: the COCO JSON.
        named_images: take only images with results, if there are any.

    Raises:
        UserError: a file cannot be read, or a result is malformed or of no annotated image.
    """
    found = match_file(results, annotations, named_images=named_images)
    truth, notes = found.ground_truth, list(found.notes)
    for kind, table in found.matches.items():
        in_images = int(np.isin(found.found[kind].image_ids, truth.image_ids).sum())
        if dropped := in_images - len(table.det_label):
            notes.append(
                f"{dropped} {_NAMES[kind]} are not scored: COCO takes the 100 of an image and "
                "class with the highest scores"
            )
    image_ids = truth.image_ids.tolist()
    return ScoredResults(
        truth,
        {_NAMES[kind]: table for kind, table in found.matches.items()},
        np.array([truth.size_of(each) for each in image_ids], np.int64).reshape(-1, 2),
        tuple(truth.file_name_of(each) for each in image_ids),
        tuple(notes),
    )
