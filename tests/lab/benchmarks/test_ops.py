from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from tools.lab.benchmarks import ops
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.measure import Row
from tools.lab.benchmarks.settings import Settings


@pytest.mark.parametrize(("benchmark", "num_rows"), [(ops.roi_align, 4), (ops.nms, 1)])
def test_both_sides_agree(
    benchmark: Callable[[Settings], list[Row]], num_rows: int, tmp_path: Path
) -> None:
    rows = benchmark(Settings(folder=tmp_path, log=lambda _: None, rounds=1, small=True))
    assert len(rows) == num_rows
    assert all(" ms against " in row.detail for row in rows)


def test_different_boxes_are_an_error() -> None:
    ours, peer = torch.tensor([1, 2, 5]), torch.tensor([1, 4])
    ops.check_same_boxes("NMS", ours, ours)
    expected = "NMS: expected the peer's 2 boxes, got 3, 3 differ"
    with pytest.raises(DisagreementError, match=expected):
        ops.check_same_boxes("NMS", ours, peer)


def test_proposals_overlap_like_those_of_a_network() -> None:
    boxes, scores = ops.best_proposals(600)
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= ops.IMAGE[1]
    assert len(scores.unique()) > 500
    assert len(torchvision.ops.nms(boxes, scores, 0.7)) < 400
