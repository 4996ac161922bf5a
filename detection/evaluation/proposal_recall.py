"""Recall of proposals: which objects the RPN finds at all, by size and number of proposals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detection.evaluation.ground_truth import GroundTruth
from detection.evaluation.matching import AREA_RANGES, IOU_THRESHOLDS
from detection.ops.boxes import box_iou, xywh_to_xyxy

LIMITS = (100, 300, 1000)


def proposal_recall(
    proposals: Sequence[np.ndarray], ground_truth: GroundTruth, *, limits: Sequence[int] = LIMITS
) -> dict[str, Any]:
    """Return the share of objects that a proposal overlaps, whatever their class.

    Args:
        proposals: (N, 4) xyxy of each image in the order of `ground_truth.image_ids`, in pixels of
            the file, by falling objectness. N may be 0.
        ground_truth: of these images. Crowds do not count.
        limits: how many proposals of each image are taken.

    Returns:
        For JSON: by limit, then by size ("all", "small", "medium", "large"): `objects`, their
        number; `recall50` at an IoU of 0.5; `recall`, the mean over IoU 0.50 to 0.95. Recalls are
        null if there are no objects.
    """
    table, image_ids = ground_truth.table, ground_truth.image_ids
    assert len(proposals) == len(image_ids), "expected the proposals of every image"
    rows = ground_truth.rows[~table.is_crowd[ground_truth.rows]]
    places = np.searchsorted(image_ids, table.image_ids[rows])
    order = np.argsort(places, kind="stable")
    ends = np.searchsorted(places[order], np.arange(len(image_ids) + 1))
    best = np.zeros((len(rows), len(limits)))  # largest IoU of each object
    for place in np.unique(places).tolist():
        own = order[ends[place] : ends[place + 1]]
        objects = torch.from_numpy(xywh_to_xyxy(table.xywh[rows[own]]))
        iou = box_iou(objects, torch.from_numpy(proposals[place].astype(np.float64))).numpy()
        for column, limit in enumerate(limits):
            best[own, column] = iou[:, :limit].max(axis=1, initial=0)
    areas = table.areas[rows]
    return {
        str(limit): {
            size: _recall(best[(areas >= low) & (areas <= high), column])
            for size, (low, high) in AREA_RANGES.items()
        }
        for column, limit in enumerate(limits)
    }


def _recall(best: np.ndarray) -> dict[str, float | int | None]:
    if not len(best):
        return {"objects": 0, "recall50": None, "recall": None}
    found = (best[:, None] >= IOU_THRESHOLDS).mean(axis=0)
    return {"objects": len(best), "recall50": float(found[0]), "recall": float(found.mean())}
