"""Reference detection losses, sample by sample, over all images of a batch.

A row is one valid sample.
"""

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def smooth_l1(pred: float, target: float, beta: float) -> float:
    error = abs(pred - target)
    return error**2 / (2 * beta) if error < beta else error - beta / 2


def box_loss(pred: Numbers, target: Numbers, beta: float) -> float:
    return sum(smooth_l1(p, t, beta) for p, t in zip(pred, target, strict=True))


def rpn(rows: Sequence[tuple[float, Numbers, Numbers, bool]], beta: float) -> tuple[float, float]:
    """Return objectness and box loss of (logit, delta, target delta, is foreground) rows."""
    objectness = box = 0.0
    for logit, delta, target, is_fg in rows:
        prob = 1 / (1 + math.exp(-logit))
        objectness -= math.log(prob if is_fg else 1 - prob)
        box += box_loss(delta, target, beta) if is_fg else 0
    count = max(len(rows), 1)
    return objectness / count, box / count


def roi(
    rows: Sequence[tuple[Numbers, Sequence[Numbers], Numbers, int]], beta: float
) -> tuple[float, float]:
    """Return class and box loss of (logits, deltas of each class, target delta, label) rows."""
    classification = box = 0.0
    for logits, deltas, target, label in rows:
        classification -= math.log(math.exp(logits[label]) / sum(map(math.exp, logits)))
        box += box_loss(deltas[label], target, beta) if label < len(deltas) else 0
    count = max(len(rows), 1)
    return classification / count, box / count
