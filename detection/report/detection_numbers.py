"""Every number of a detector's report, as a tree of dictionaries for report.json.

K classes. Shares are in [0, 1]; NaN stands for what is undefined.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from detection.evaluation import breakdown
from detection.evaluation.calibration import reliability
from detection.evaluation.coco_summary import coco_summary
from detection.evaluation.confusion import confusion
from detection.evaluation.examples import image_errors
from detection.evaluation.matching import MatchTable, average_precision
from detection.evaluation.score_curves import (
    AT_HALF,
    GRID,
    ScoreCurve,
    class_curves,
    pooled_curve,
)

MAX_PAIRS = 100  # most pairs of confused classes that are listed
DEFAULT_THRESH = 0.5
"""Score threshold of the counts if nothing is right, so that no threshold is best."""
_THREE_QUARTERS = 5  # index of IoU 0.75


def detection_numbers(
    table: MatchTable,
    *,
    sizes: np.ndarray,
    brightness: np.ndarray | None = None,
    score_thresh: float | None = None,
) -> dict[str, Any]:
    """Return the numbers of boxes or of masks.

    Args:
        table: the matched detections.
        sizes: (I, 2) height and width of the images, zeros where unknown.
        brightness: (I,) mean pixel value of the images, NaN where unknown; None: not measured.
        score_thresh: threshold of confusion, of the counts by image, and of what is found; None:
            the one with the highest F1 of all classes together.
    """
    curve = pooled_curve(table)
    if score_thresh is None:
        score_thresh = DEFAULT_THRESH if np.isnan(curve.best_thresh) else curve.best_thresh
    errors = image_errors(table, score_thresh=score_thresh)
    counted = ~table.det_ignored[AT_HALF]
    found = reliability(table.det_score[counted], table.is_true[AT_HALF][counted])
    confused = confusion(table, score_thresh=score_thresh)
    names = (*table.names, "background")
    return {
        "iou_type": table.iou_type,
        "counts": {
            "images": len(table.image_ids),
            "images_with_detections": len(np.unique(table.det_image)),
            "objects": int((~table.gt_crowd).sum()),
            "crowd_regions": int(table.gt_crowd.sum()),
            "detections": len(table.det_label),
            "classes": len(table.names),
        },
        "summary": coco_summary(table),
        "score_thresh": score_thresh,
        "at_score_thresh": {
            "right": int(errors.right.sum()),
            "wrong": int(errors.wrong.sum()),
            "missed": int(errors.missed.sum()),
        },
        "classes": _classes(table),
        "scores": {"threshold": GRID, **_curve(curve)},
        "confusion": {
            "iou_thresh": confused.iou_thresh,
            "score_thresh": confused.score_thresh,
            "classes": list(table.names),
            "matrix": confused.matrix,
            "worst": [
                {
                    "annotated": names[i],
                    "predicted": "missed" if j == len(table.names) else names[j],
                    "count": number,
                }
                for i, j, number in confused.worst(MAX_PAIRS)
            ],
        },
        "calibration": asdict(found),
        "parts": _parts(table, sizes, brightness, score_thresh),
    }


def _classes(table: MatchTable) -> list[dict[str, Any]]:
    precision = average_precision(table)  # (T, K)
    detections = np.bincount(table.det_label, minlength=len(table.names)).tolist()
    rows = []
    for label, (name, curve) in enumerate(zip(table.names, class_curves(table), strict=True)):
        of_class = precision[:, label]
        rows.append(
            {
                "name": name,
                "category_id": int(table.category_ids[label]),
                "objects": curve.num_objects,
                "detections": detections[label],
                "ap": float(of_class.mean()),
                "ap50": float(of_class[AT_HALF]),
                "ap75": float(of_class[_THREE_QUARTERS]),
                "scores": _curve(curve),
            }
        )
    return rows


def _curve(curve: ScoreCurve) -> dict[str, Any]:
    """Return a curve without its thresholds, which are the same for all; rounded for the file."""
    return {
        "best_threshold": curve.best_thresh,
        "best_f1": curve.best_f1,
        "precision_there": curve.best_precision,
        "recall_there": curve.best_recall,
        **{name: getattr(curve, name).round(5) for name in ("precision", "recall", "f1")},
    }


def _parts(
    table: MatchTable, sizes: np.ndarray, brightness: np.ndarray | None, score_thresh: float
) -> dict[str, Any]:
    parts = {
        "size": breakdown.by_size(table, score_thresh=score_thresh),
        "aspect": breakdown.by_aspect(table, score_thresh=score_thresh),
        "objects_in_image": breakdown.by_object_count(table, score_thresh=score_thresh),
        "overlap": breakdown.by_overlap(table, score_thresh=score_thresh),
    }
    if sizes.any():
        parts["position"] = breakdown.by_position(table, sizes, score_thresh=score_thresh)
    if brightness is not None and not np.isnan(brightness).all():
        edges = np.nanquantile(brightness, [0.25, 0.5, 0.75]).tolist()
        parts["brightness"] = breakdown.by_image(
            table, brightness, edges, names=_quarters(edges), score_thresh=score_thresh
        )
    return {name: [asdict(part) for part in of] for name, of in parts.items()}


def _quarters(edges: Sequence[float]) -> list[str]:
    a, b, c = (f"{each:.0f}" for each in edges)
    return [f"dark, under {a}", f"{a} to {b}", f"{b} to {c}", f"bright, from {c}"]
