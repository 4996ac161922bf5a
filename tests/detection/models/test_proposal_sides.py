"""Proposals with a side shorter than `min_size` go; one as long stays."""

import pytest
import torch

from detection.config import RPNConfig
from detection.models.proposals import make_proposals
from detection.models.rpn import RPNOutput

BOXES = {
    "as long": ([10.0, 20.0, 18.0, 28.0], True),
    "narrow": ([10.0, 20.0, 17.5, 60.0], False),
    "low": ([10.0, 20.0, 60.0, 27.5], False),
    "narrow once cut to the image": ([94.0, 20.0, 120.0, 60.0], False),
}


@pytest.mark.parametrize(("box", "stays"), BOXES.values(), ids=BOXES)
def test_both_sides_count(box: list[float], stays: bool) -> None:
    large = [0.0, 0.0, 8.0, 8.0]
    rpn = RPNOutput(
        objectness_logits=torch.tensor([[2.0, 1.0]]),
        deltas=torch.zeros(1, 2, 4),
        anchors=torch.tensor([box, large]),
        anchor_valid=torch.ones(1, 2, dtype=torch.bool),
        level_sizes=(2,),
    )
    config = RPNConfig(min_size=8.0)
    found = make_proposals(rpn, torch.tensor([[80, 100]]), config=config, training=False)
    assert found.boxes[found.valid].tolist() == ([box, large] if stays else [large])
