"""Reference matching and sampling for one image, candidate by candidate."""

from collections.abc import Sequence

from tests.reference.boxes import Box, ioa, iou


def match(
    gt: Sequence[Box],
    crowds: Sequence[Box],
    candidates: Sequence[Box],
    *,
    fg_thresh: float,
    bg_thresh: float,
    allow_low_quality: bool,
    crowd_ioa_thresh: float,
) -> tuple[list[int], list[int]]:
    """Return the matched index into `gt` (0 without overlap) and the label of every candidate."""
    best_of_gt = [max((iou(box, candidate) for candidate in candidates), default=0) for box in gt]
    matched_idxs, labels = [], []
    for candidate in candidates:
        ious = [iou(box, candidate) for box in gt]
        best = max(ious, default=0.0)
        matched_idxs.append(ious.index(best) if ious else 0)
        label = 1 if best >= fg_thresh else -1 if best >= bg_thresh else 0
        in_crowd = max((ioa(crowd, candidate) for crowd in crowds), default=0.0)
        if label == 0 and in_crowd >= crowd_ioa_thresh:
            label = -1
        pairs = zip(ious, best_of_gt, strict=True)
        if allow_low_quality and any(value == best > 0 for value, best in pairs):
            label = 1
        labels.append(label)
    return matched_idxs, labels


def sample(
    labels: Sequence[int], keys: Sequence[int], *, num_samples: int, fg_fraction: float
) -> tuple[list[int], list[int]]:
    """Return indices of the sampled foreground and background candidates, by falling key."""
    order = sorted(range(len(labels)), key=lambda i: keys[i], reverse=True)
    foreground = [i for i in order if labels[i] == 1][: int(num_samples * fg_fraction)]
    background = [i for i in order if labels[i] == 0][: num_samples - len(foreground)]
    return foreground, background
