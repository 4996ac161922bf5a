"""Boxes that are far off their class, and boxes that are almost equal."""

import numpy as np

NEAR_IOU = 0.9
"""Two boxes of one class with this IoU are rarely two objects."""

_DEVIATION_OF_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation (MAD)."""


def robust_deviations(
    values: np.ndarray, groups: np.ndarray, *, least: float, min_count: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return (value - median) / deviation within each group, and the medians: (M,) each.

    The deviation is estimated by the median absolute deviation, which a few outliers do not change.
    Both are 0 in groups below 0 and in small groups.

    Args:
        values: (M,) float64, such as logarithms of sizes.
        groups: (M,) int64.
        least: smallest deviation; groups whose values are all alike have no useful one.
        min_count: values that a group needs before its usual value is known.
    """
    deviations, medians = np.zeros(len(values)), np.zeros(len(values))
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    for rows in np.split(order, starts):
        if len(rows) >= min_count and groups[rows[0]] >= 0:
            medians[rows] = np.median(values[rows])
            distance = values[rows] - medians[rows]
            spread = _DEVIATION_OF_MAD * float(np.median(np.abs(distance)))
            deviations[rows] = distance / max(spread, least)
    return deviations, medians


def near_pairs(groups: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of boxes of one group with an IoU of at least `NEAR_IOU`.

    Args:
        groups: (n,) int64, such as image and class in one number.
        boxes: (n, 4) float32 xyxy, of positive size.

    Returns:
        Places (later, earlier) in `boxes`, with later > earlier, and the IoU: (pairs,) each.
    """
    order = np.lexsort((boxes[:, 0], groups))
    group, box = groups[order], boxes[order].astype(np.float64)
    widths = box[:, 2] - box[:, 0]
    firsts = np.arange(len(order))
    pairs, ious = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    # Boxes are sorted by x1. If box j begins d after box i, their IoU is at most
    # (width_i - d) / width_i: box i is compared with the next ones until d is too large.
    for lag in range(1, len(order)):
        firsts = firsts[firsts + lag < len(order)]
        seconds = firsts + lag
        shift = box[seconds, 0] - box[firsts, 0]
        is_close = group[firsts] == group[seconds]
        is_close &= shift <= (1 - NEAR_IOU) * widths[firsts]
        firsts, seconds = firsts[is_close], seconds[is_close]
        if not len(firsts):
            break
        iou = _iou(box[firsts], box[seconds])
        near = iou >= NEAR_IOU
        found = np.column_stack([order[firsts[near]], order[seconds[near]]])
        pairs.append(np.sort(found, axis=1)[:, ::-1])
        ious.append(iou[near])
    later, earlier = np.concatenate(pairs).T
    return later, earlier, np.concatenate(ious)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes (n, 4) with boxes (n, 4), pair by pair."""
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    inside = sides.clip(0).prod(axis=1)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (first, second)]
    iou: np.ndarray = inside / (areas[0] + areas[1] - inside)
    return iou
