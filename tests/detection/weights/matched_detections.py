"""Comparison of detections with another project's, in whatever order equal scores come."""

import torch
from torch import Tensor

from detection.structures import Detections

CLASS_GAP = 1e4
"""Pixels added to the distance of boxes of different classes."""


def check_detections(
    found: Detections,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    tolerance: float = 1e-4,
) -> Tensor:
    """Check that each of the other project's detections is found; return their rows in `found`.

    boxes, to `tolerance` of the image's side: (N, 4). scores, to `tolerance`: (N,). labels: (N,).
    """
    # scores that are equal to 1e-5 may come in another order
    distances = torch.cdist(
        torch.cat([boxes, CLASS_GAP * labels[:, None]], dim=1),
        torch.cat([found.boxes, CLASS_GAP * found.labels[:, None]], dim=1),
        p=torch.inf,
    )
    rows = distances.argmin(dim=1)
    assert rows.unique().numel() == len(rows)
    assert torch.equal(found.labels[rows], labels)
    side = float(boxes.max())
    torch.testing.assert_close(found.boxes[rows], boxes, rtol=0, atol=tolerance * side)
    torch.testing.assert_close(found.scores[rows], scores, rtol=0, atol=tolerance)
    return rows
