from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detection.ops.voting import vote_boxes
from tests.reference import voting as reference

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def crowded_batch(kept: int, candidates: int) -> Batch:
    """Return three images of boxes in few places; whole numbers, so some only touch or are empty.

    The last image has no score above 0.
    """
    corners = torch.randint(12, (3, kept + candidates, 2)).float()
    boxes = torch.cat([corners, corners + torch.randint(16, corners.shape)], dim=2)
    labels = torch.randint(3, boxes.shape[:2])
    scores = torch.randint(-1, 11, (3, candidates)) / 10
    scores[2] = scores[2].clamp(max=0)
    first = slice(kept)
    return boxes[:, first], labels[:, first], boxes[:, kept:], scores, labels[:, kept:]


@pytest.mark.parametrize("iou_thresh", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    ("kept", "candidates"), [(0, 0), (0, 5), (5, 0), (1, 1), (16, 30), (40, 150)], ids=str
)
def test_is_the_reference(kept: int, candidates: int, iou_thresh: float) -> None:
    batch = crowded_batch(kept, candidates)
    found = vote_boxes(*batch, iou_thresh=iou_thresh)
    assert (found.shape, found.dtype) == ((3, kept, 4), torch.float32)
    for image in range(3):
        boxes, labels, *columns = (values[image].tolist() for values in batch)
        for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            voters = list(zip(*columns, strict=True))
            expected = reference.vote(box, label, voters, iou_thresh=iou_thresh)
            torch.testing.assert_close(found[image, row], torch.tensor(expected))


def test_a_batch_is_its_images() -> None:
    batch = crowded_batch(20, 60)
    found = vote_boxes(*batch, iou_thresh=0.3)
    for row in range(3):
        alone = vote_boxes(*(values[row : row + 1] for values in batch), iou_thresh=0.3)
        torch.testing.assert_close(alone[0], found[row], rtol=0, atol=1e-5)


def test_a_box_alone_and_a_box_without_votes_stay_to_the_bit() -> None:
    kept = torch.tensor([[[0.1, 0.2, 10.3, 9.7], [50.1, 50.2, 60.3, 60.4]]])
    labels = torch.tensor([[0, 1]])
    scores = torch.tensor([[0.3, 0.9]])
    alone = vote_boxes(kept, labels, kept, scores, labels, iou_thresh=0.5)
    assert torch.equal(alone, kept)
    other_class = vote_boxes(kept, labels, kept, scores, 1 - labels, iou_thresh=0.5)
    assert torch.equal(other_class, kept)


def test_only_copies_vote_at_an_iou_of_1() -> None:
    kept = torch.rand(2, 30, 2) * 100
    kept = torch.cat([kept, kept + 1 + torch.rand(2, 30, 2) * 50], dim=2)
    labels = torch.zeros(2, 30, dtype=torch.int64)
    boxes = torch.cat([kept, kept + 0.01, kept], dim=1)
    found = vote_boxes(kept, labels, boxes, torch.rand(2, 90), labels.repeat(1, 3), iou_thresh=1.0)
    assert torch.equal(found, kept)


def test_boxes_that_do_not_vote_may_be_anything() -> None:
    kept, labels, boxes, scores, others = crowded_batch(20, 60)
    expected = vote_boxes(kept, labels, boxes, scores, others, iou_thresh=0.5)
    spoiled = boxes.where((scores > 0)[..., None], torch.nan)
    assert torch.equal(vote_boxes(kept, labels, spoiled, scores, others, iou_thresh=0.5), expected)


def test_the_order_of_candidates_changes_nothing() -> None:
    kept, labels, *candidates = crowded_batch(20, 60)
    order = torch.randperm(60)
    shuffled = [values[:, order] for values in candidates]
    torch.testing.assert_close(
        vote_boxes(kept, labels, *shuffled, iou_thresh=0.4),
        vote_boxes(kept, labels, *candidates, iou_thresh=0.4),
    )


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_memory_is_that_of_sixteen_detections() -> None:
    batch = crowded_batch(100, 1000)
    with LargestTensor() as largest:
        vote_boxes(*batch, iou_thresh=0.5)
    assert largest.numel == 3 * 16 * 1000
