"""Batches of boxes that suppress one another, for the two implementations of NMS."""

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def crowded(count: int, *, num_groups: int, share_valid: float = 0.8) -> Batch:
    """Return boxes (3, count, 4) in few places, scores with ties, groups, and which are valid.

    The last image holds nothing. Some boxes have no area, some are copies, some touch.
    """
    rng = np.random.default_rng(count + num_groups)
    corners = rng.integers(60, size=(3, count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(40, size=(3, count, 2))], axis=2)
    valid = rng.random((3, count)) < share_valid
    valid[2] = False
    scores = rng.integers(11, size=(3, count)) / 10
    groups = rng.integers(num_groups, size=(3, count))
    floats = [torch.tensor(values, dtype=torch.float32) for values in (boxes, scores)]
    return floats[0], floats[1], torch.from_numpy(groups), torch.from_numpy(valid)


CASES: dict[str, tuple[Batch, float, int | None]] = {
    "a block": (crowded(50, num_groups=1), 0.5, None),
    "blocks": (crowded(700, num_groups=1), 0.7, None),
    "groups": (crowded(700, num_groups=5), 0.5, None),
    "stops within a block": (crowded(700, num_groups=2), 0.7, 77),
    "stops in the first block": (crowded(300, num_groups=1), 0.9, 3),
    "more wanted than there are": (crowded(100, num_groups=1), 0.3, 90),
    "none wanted": (crowded(20, num_groups=1), 0.5, 0),
    "one": (crowded(1, num_groups=1, share_valid=1.0), 0.5, None),
    "no boxes": (crowded(0, num_groups=1), 0.5, None),
    "hardly any valid": (crowded(500, num_groups=3, share_valid=0.01), 0.5, None),
    "everything suppresses": (crowded(300, num_groups=1), 0.0, None),
}
"""By name: a batch, `iou_thresh` and `max_kept`."""
