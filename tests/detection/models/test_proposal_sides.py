"""Proposals have both sides above `min_size`."""

import pytest
import torch

from detection.config import RPNConfig
from detection.models.proposals import make_proposals
from detection.models.rpn import RPNOutput

BOXES = {
    "longer": ([10.0, 20.0, 18.5, 28.5], True),
    "as long": ([10.0, 20.0, 18.0, 28.0], False),
    "narrow": ([10.0, 20.0, 17.5, 60.0], False),
    "low": ([10.0, 20.0, 60.0, 27.5], False),
    "narrow once cut to the image": ([94.0, 20.0, 120.0, 60.0], False),
}


@pytest.mark.parametrize(("box", "stays"), BOXES.values(), ids=BOXES)
def test_both_sides_count(box: list[float], stays: bool) -> None:
    large = [0.0, 0.0, 9.0, 9.0]
    assert proposals_of([box, large], min_size=8.0) == ([box, large] if stays else [large])


@pytest.mark.parametrize("training", [False, True])
def test_above_zero_are_all_with_an_area(training: bool) -> None:
    """detectron2's rule, with its default of 0."""
    thin = [10.0, 20.0, 10.0 + 2**-10, 60.0]
    empty = [[10.0, 20.0, 10.0, 60.0], [10.0, 20.0, 60.0, 20.0], [110.0, 20.0, 120.0, 60.0]]
    assert proposals_of([*empty, thin], min_size=0.0, training=training) == [thin]


def proposals_of(
    boxes: list[list[float]], *, min_size: float, training: bool = False
) -> list[list[float]]:
    """Return the proposals of an RPN whose anchors are these boxes, without deltas."""
    rpn = RPNOutput(
        objectness_logits=torch.arange(len(boxes), 0, -1.0)[None],
        deltas=torch.zeros(1, len(boxes), 4),
        anchors=torch.tensor(boxes),
        anchor_valid=torch.ones(1, len(boxes), dtype=torch.bool),
        level_sizes=(len(boxes),),
    )
    config = RPNConfig(min_size=min_size, nms_thresh=1.0)
    found = make_proposals(rpn, torch.tensor([[80, 100]]), config=config, training=training)
    kept: list[list[float]] = found.boxes[found.valid].tolist()
    return kept
