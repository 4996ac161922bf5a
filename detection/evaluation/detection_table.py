"""Table of the detections of many images, checked, for COCO scoring.

M detections. Boxes are xywh and ids are the original ones, as in COCO's files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as mask_codec

from detection.data.coco import ClassMap
from detection.evaluation.ground_truth import GroundTruth
from detection.ops.boxes import xyxy_to_xywh
from detection.structures import RunLengthMasks
from engine.errors import UserError

IoUType = Literal["bbox", "segm"]


@dataclass(frozen=True)
class DetectionTable:
    """M detections. If there are `masks`, they are scored, else the boxes.

    image_ids, category_ids: (M,) int64. scores: (M,) float64. boxes: (M, 4) float64, zeros if there
    are masks. masks: M compressed RLEs of COCO, or empty. areas: (M,) float64, which decide whether
    a detection is small, medium or large for COCO.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: list[dict[str, Any]]
    areas: np.ndarray

    def within(self, image_ids: Iterable[int]) -> "DetectionTable":
        """Return the detections in some images, in the same order."""
        keep = np.flatnonzero(np.isin(self.image_ids, list(image_ids)))
        return self if len(keep) == len(self.image_ids) else self.at(keep)

    def at(self, rows: np.ndarray) -> "DetectionTable":
        """Return the detections at `rows` (n,) int64, in their order."""
        return DetectionTable(
            image_ids=self.image_ids[rows],
            category_ids=self.category_ids[rows],
            scores=self.scores[rows],
            boxes=self.boxes[rows],
            masks=[self.masks[row] for row in rows.tolist()] if self.masks else [],
            areas=self.areas[rows],
        )

    def of_category(self, category_id: int) -> list[dict[str, Any]]:
        """Return one category's detections in the form of pycocotools, in table order."""
        rows = np.flatnonzero(self.category_ids == category_id)
        columns = (self.image_ids[rows], self.scores[rows], self.areas[rows])
        return [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "score": score,
                "area": area,
                "iscrowd": 0,
                **self._shape(row),
            }
            # ids from 1, as in pycocotools' loadRes
            for number, (row, image_id, score, area) in enumerate(
                zip(rows.tolist(), *(column.tolist() for column in columns), strict=True), start=1
            )
        ]

    def _shape(self, row: int) -> dict[str, Any]:
        if self.masks:
            return {"segmentation": self.masks[row]}
        return {"bbox": self.boxes[row].tolist()}


class DetectionRows(NamedTuple):
    """A network's detections in one image, compact enough to send between processes.

    rows: (N, 6) float32 with columns x1, y1, x2, y2, score, label.
    """

    image_id: int
    rows: np.ndarray
    masks: RunLengthMasks | None


def table_of_detections(
    gathered: Sequence[DetectionRows],
    classes: ClassMap,
    ground_truth: GroundTruth,
    *,
    iou_type: IoUType,
) -> DetectionTable:
    """Check a network's detections and return them as a table, as `table_of_results` does.

    Raises:
        UserError: a score or box is not finite, or a mask does not have the size of its image.
    """
    assert ground_truth.places.keys() >= {image_id for image_id, *_ in gathered}
    assert ground_truth.names.keys() >= set(classes.category_ids)
    source = "detections"
    counts = [len(rows) for _, rows, _ in gathered]
    # (M, 6), all images concatenated; the empty first array allows no images at all
    rows = np.concatenate([np.zeros((0, 6), np.float32), *(rows for _, rows, _ in gathered)])
    masks: list[dict[str, Any]] = []
    for image_id, _, coded in gathered if iou_type == "segm" else ():
        assert coded is not None, "expected a network with masks"
        size, expected = list(coded.size), ground_truth.size_of(image_id)
        if size != expected:
            where = f"{source}: detection {len(masks)}"
            raise UserError(f"{where}: segmentation: expected size {expected}, got {size}")
        masks += [{"size": size, "counts": code} for code in coded.codes]
    # converted to xywh in float32, like the boxes of a results file, so that the file has the same
    # score
    boxes = xyxy_to_xywh(rows[:, :4]).astype(np.float64)
    found = DetectionTable(
        # image ids, one per detection, in the order of `rows`
        np.repeat(np.array([image_id for image_id, *_ in gathered], dtype=np.int64), counts),
        np.array(classes.category_ids)[rows[:, 5].astype(np.int64)],
        rows[:, 4].astype(np.float64),
        boxes,
        masks,
        areas_of(boxes, masks),
    )
    check_numbers(found, source)
    return found


def areas_of(boxes: np.ndarray, masks: list[dict[str, Any]]) -> np.ndarray:
    """Return the areas of the masks, or of the boxes (M, 4) if there are no masks: (M,) float64."""
    if masks:
        # one by one: given a list, pycocotools stores its length in one byte
        return np.array([mask_codec.area(mask) for mask in masks], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # check_numbers reports these
        areas: np.ndarray = boxes[:, 2] * boxes[:, 3]
    return areas


def check_numbers(found: DetectionTable, source: str) -> None:
    """Raise UserError for the first detection with an invalid score or box."""
    bad_scores = ~np.isfinite(found.scores)
    bad_boxes = ~np.isfinite(found.boxes).all(axis=1) | (found.boxes[:, 2:] < 0).any(axis=1)
    # at most one iteration: the first bad row
    for row in np.flatnonzero(bad_scores | bad_boxes)[:1].tolist():
        where = f"{source}: detection {row}"
        if bad_scores[row]:
            raise UserError(f"{where}: score: expected a number, got {found.scores[row]}")
        box = found.boxes[row].tolist()
        raise UserError(
            f"{where}: bbox: expected four finite numbers, no negative width or height, got {box}"
        )
