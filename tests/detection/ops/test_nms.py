import pytest
import torch
import torchvision
from torch import Tensor

from detection.ops.nms import nms_in_one_call, nms_keep, nms_operator
from tests.reference import nms as reference

pytestmark = pytest.mark.usefixtures("kernels")

UNIT = [0.0, 0.0, 1.0, 1.0]
CASES = {
    "none": ([], []),
    "one": ([UNIT], [0.5]),
    "copies with equal scores": ([UNIT] * 4, [0.5] * 4),
    "touching": ([UNIT, [1.0, 0, 2, 1]], [0.5, 0.6]),
    "no area": ([[1.0, 1, 1, 1]] * 3, [0.1, 0.2, 0.3]),
    "at the threshold": ([[0.0, 0, 10, 1], [0.0, 0, 3, 1]], [0.9, 0.8]),
    "above the threshold": ([[0.0, 0, 10, 1], [0.0, 0, 4, 1]], [0.9, 0.8]),
    "chain": ([[0.0, 0, 4, 1], [2, 0, 6, 1], [4, 0, 8, 1]], [0.9, 0.8, 0.7]),
    "negative coordinates": ([[-9.0, -9, -5, -5], [-8, -9, -5, -5]], [0.1, 0.2]),
}


@pytest.mark.parametrize(("boxes", "scores"), CASES.values(), ids=CASES)
def test_is_the_reference(boxes: list[list[float]], scores: list[float]) -> None:
    groups = torch.zeros(1, len(boxes), dtype=torch.int64)
    keep = nms_keep(
        torch.tensor(boxes).view(1, -1, 4),
        torch.tensor(scores)[None],
        groups,
        torch.ones_like(groups, dtype=torch.bool),
        iou_thresh=0.3,
    )
    assert keep[0].tolist() == reference.nms(boxes, scores, groups[0].tolist(), 0.3)


@pytest.mark.parametrize(("boxes", "scores"), list(CASES.values())[1:], ids=list(CASES)[1:])
def test_in_one_call_is_the_reference(boxes: list[list[float]], scores: list[float]) -> None:
    # the boxes in two images and two groups, and a copy that is not valid
    rows = torch.tensor(boxes)
    count = len(boxes)
    groups = torch.tensor([[0] * count + [3] * count + [3] * count] * 2)
    valid = torch.tensor([[True] * 2 * count + [False] * count] * 2)
    keep = nms_in_one_call(
        rows.repeat(3, 1).expand(2, -1, -1),
        torch.tensor(scores).repeat(3).expand(2, -1),
        groups,
        valid,
        iou_thresh=0.3,
    )
    kept = reference.nms(boxes, scores, [0] * count, 0.3)
    assert keep.tolist() == [kept * 2 + [False] * count] * 2


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three images of 200 boxes in few places and four groups; the last holds nothing."""
    corners = torch.rand(3, 200, 2) * 60
    boxes = torch.cat([corners, corners + 10 + torch.rand(3, 200, 2) * 30], dim=-1)
    valid = torch.rand(3, 200) < 0.8
    valid[2] = False
    # tenths: many scores are equal
    return boxes, torch.randint(0, 11, (3, 200)) / 10, torch.randint(0, 4, (3, 200)), valid


def test_a_batch_is_its_images_and_groups(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    keep = nms_keep(*batch, iou_thresh=0.5)
    boxes, scores, groups, valid = batch
    expected = torch.zeros_like(valid)
    for i in range(3):
        idxs = valid[i].nonzero()[:, 0]
        columns = (boxes[i, idxs].tolist(), scores[i, idxs].tolist(), groups[i, idxs].tolist())
        expected[i, idxs] = torch.tensor(reference.nms(*columns, 0.5), dtype=torch.bool)
    assert torch.equal(keep, expected)
    assert 0 < keep.sum() < valid.sum()


def test_is_torchvisions(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    boxes, _, groups, valid = batch
    scores = torch.rand(3, 200)
    keep = nms_keep(boxes, scores, groups, torch.ones_like(valid), iou_thresh=0.5)
    for i in range(3):
        kept = torchvision.ops.batched_nms(boxes[i], scores[i], groups[i], 0.5)
        assert keep[i].nonzero()[:, 0].tolist() == kept.sort().values.tolist()


def test_padding_changes_nothing(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    keep = nms_keep(*batch, iou_thresh=0.5)
    boxes, scores, groups, valid = (
        torch.cat([part, torch.zeros_like(part[:, :30])], dim=1) for part in batch
    )
    padded = nms_keep(boxes, scores + 1.0, groups, valid, iou_thresh=0.5)
    assert torch.equal(padded[:, :200], keep)
    assert not padded[:, 200:].any()


@pytest.mark.parametrize("max_kept", [0, 1, 5, 40, 200, 1000])
def test_the_best_are_kept(batch: tuple[Tensor, Tensor, Tensor, Tensor], max_kept: int) -> None:
    _, scores, _, valid = batch
    everything = nms_keep(*batch, iou_thresh=0.5)
    expected = torch.zeros_like(valid)
    for image, survives in enumerate(everything):
        ranked = scores[image].masked_fill(~survives, -1).sort(descending=True, stable=True).indices
        expected[image, ranked[: min(max_kept, int(survives.sum()))]] = True
    assert torch.equal(nms_keep(*batch, iou_thresh=0.5, max_kept=max_kept), expected)


@pytest.mark.parametrize("iou_thresh", [0.5, 0.7])
def test_many_proposals_are_torchvisions(iou_thresh: float) -> None:
    corners = torch.rand(3000, 2) * 200
    boxes = torch.cat([corners, corners + 20 + torch.rand(3000, 2) * 60], dim=-1)
    scores = torch.randint(0, 500, (3000,)) / 500  # ties
    kept = torchvision.ops.nms(boxes, scores, iou_thresh)
    one_group, valid = torch.zeros(1, 3000, dtype=torch.int64), torch.ones(1, 3000).bool()
    for max_kept in (None, 300):
        keep = nms_keep(
            boxes[None], scores[None], one_group, valid, iou_thresh=iou_thresh, max_kept=max_kept
        )
        assert keep[0].nonzero()[:, 0].tolist() == sorted(kept[:max_kept].tolist())


def test_operator_is_registered_as_it_behaves(
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    torch.library.opcheck(nms_operator, batch, {"iou_thresh": 0.5})
    torch.library.opcheck(nms_operator, batch, {"iou_thresh": 0.5, "max_kept": 20})
