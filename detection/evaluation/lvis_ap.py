"""Average precision by the rules of LVIS, computed by hotcoco (Gupta et al. 2019, section 3).

The AP of a class is COCO's, with these differences. An image counts for a class only if it has
objects of it, or is known to have none: detections of other classes are dropped. Unmatched
detections of a class that is not annotated exhaustively in the image are ignored. At most
MAX_DETECTIONS of an image are scored, over all classes, those with the highest scores. There are no
crowd regions. As in lvis-api, objects and detections whose area is 0 are dropped.

K categories, T=10 IoU thresholds, R=101 recall thresholds, A=4 ranges of area.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from detection.config import ApProtocol
from detection.data.lvis_json import FREQUENCIES
from detection.evaluation.coco_backends import hotcoco_tables
from detection.evaluation.detection_table import DetectionTable, IoUType
from detection.evaluation.ground_truth import GroundTruth
from engine.errors import UserError

LVIS_SUMMARY = (
    *("lvis_ap", "lvis_ap50", "lvis_ap75"),
    *("lvis_ap_small", "lvis_ap_medium", "lvis_ap_large"),
    *("lvis_ap_rare", "lvis_ap_common", "lvis_ap_frequent"),
)
"""AP, AP50, AP75, APs, APm, APl, APr, APc and APf of LVIS."""
MAX_DETECTIONS = 300
"""Detections of an image that are scored."""

_AP50, _AP75 = 0, 5  # among the IoU thresholds 0.5, 0.55, ... 0.95


def check_lvis(protocols: Sequence[ApProtocol]) -> None:
    """Raise UserError if LVIS's metric is wanted and hotcoco is not installed."""
    if "lvis" in protocols and find_spec("hotcoco") is None:
        raise UserError(
            "evaluation.protocols: lvis: expected hotcoco to be installed (pip install hotcoco), "
            "got none"
        )


def lvis_notes(protocols: Sequence[ApProtocol], max_detections: int) -> list[str]:
    """Return a log line if a network returns fewer detections of an image than LVIS scores."""
    if "lvis" not in protocols or max_detections >= MAX_DETECTIONS:
        return []
    return [
        f"LVIS scores up to {MAX_DETECTIONS} detections of an image, and "
        f"model.roi.max_detections={max_detections} returns fewer"
    ]


def score_lvis(
    found: DetectionTable, ground_truth: GroundTruth, *, iou_type: IoUType
) -> dict[str, float]:
    """Score boxes or masks by LVIS's rules.

    Args:
        found: detections in the scored images only.
        ground_truth: ground truth of the scored images, with `federated`.
        iou_type: whether to compare boxes or masks.

    Returns:
        The numbers of `LVIS_SUMMARY` and `lvis_ap/<class>` in [0, 1], NaN if there is no such
        object.

    Raises:
        UserError: an object is a crowd region or ignored, which LVIS does not have.
    """
    import hotcoco  # optional

    federated = ground_truth.federated
    assert federated is not None, "expected the ground truth of an LVIS file"
    check_lvis_objects(ground_truth)
    table, rows = ground_truth.table, ground_truth.rows
    ground_truth = replace(ground_truth, rows=rows[table.areas[rows] > 0])
    found = _most_confident(found)
    found = found.at(np.flatnonzero(found.areas > 0))
    evaluator = hotcoco.COCOeval(
        *hotcoco_tables(found, ground_truth, iou_type=iou_type), iou_type, lvis_style=True
    )
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval is not None
    # (T, R, K, A) for up to MAX_DETECTIONS of an image, -1 where there are no objects
    precision = np.asarray(evaluator.eval["precision"])[..., -1]
    everything = precision[..., 0]
    groups = np.array([federated.frequencies[category_id] for category_id in ground_truth.names])
    parts = [everything, everything[_AP50], everything[_AP75]]
    parts += [precision[..., area] for area in (1, 2, 3)]
    parts += [everything[:, :, groups == frequency] for frequency in FREQUENCIES]
    metrics = {name: _mean(part) for name, part in zip(LVIS_SUMMARY, parts, strict=True)}
    return metrics | {
        f"lvis_ap/{name}": _mean(everything[:, :, place])
        for place, name in enumerate(ground_truth.names.values())
    }


def _most_confident(found: DetectionTable) -> DetectionTable:
    """Return the MAX_DETECTIONS most confident detections of each image, in table order."""
    # by image, then falling score; equal scores keep the table's order
    order = np.lexsort((-found.scores, found.image_ids))
    ascending = found.image_ids[order]
    # position in that order minus the position of the image's first detection
    ranks = np.arange(len(order)) - np.searchsorted(ascending, ascending)
    return found.at(np.sort(order[ranks < MAX_DETECTIONS]))


def _mean(precision: np.ndarray) -> float:
    """Return the mean of the defined values; NaN if there are none."""
    known = precision[precision >= 0]
    return float(known.mean()) if len(known) else math.nan


def check_lvis_objects(ground_truth: GroundTruth) -> None:
    """Check that no object is a crowd region or ignored, which LVIS does not have.

    Raises:
        UserError: one is.
    """
    table, rows = ground_truth.table, ground_truth.rows
    for key, marked in (("iscrowd", table.is_crowd), ("ignore", table.is_ignored)):
        for row in rows[marked[rows]][:1].tolist():
            raise UserError(
                f"{ground_truth.path}: annotation {table.ids[row]}: {key}: expected 0, as in LVIS "
                "(evaluation.protocols: lvis), got 1"
            )
