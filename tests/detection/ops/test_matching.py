from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from detection.ops.boxes import box_iou
from detection.ops.matching import match_boxes
from tests.detection.ops.test_boxes import random_boxes
from tests.reference import matching as reference

RPN: dict[str, Any] = {
    "fg_thresh": 0.7,
    "bg_thresh": 0.3,
    "allow_low_quality": True,
    "crowd_ioa_thresh": 0.5,
}
HEAD: dict[str, Any] = {
    "fg_thresh": 0.5,
    "bg_thresh": 0.5,
    "allow_low_quality": False,
    "crowd_ioa_thresh": 0.5,
}
parametrize_rules = pytest.mark.parametrize("rules", [RPN, HEAD], ids=["rpn", "head"])


def match(
    gt: list[list[float]], candidates: list[list[float]], *, crowds: int = 0, **rules: Any
) -> tuple[list[int], list[int]]:
    """Matches of one image; the last `crowds` of `gt` are crowd regions."""
    is_crowd = torch.arange(len(gt)) >= len(gt) - crowds
    idxs, labels = match_boxes(
        torch.tensor([gt], dtype=torch.float32),
        torch.ones(1, len(gt), dtype=torch.bool),
        is_crowd[None],
        torch.tensor(candidates, dtype=torch.float32),
        **rules,
    )
    return idxs[0].tolist(), labels[0].tolist()


@parametrize_rules
@pytest.mark.parametrize("num_gt", [1, 3, 11], ids=lambda n: f"{n} gt")
def test_is_the_reference(rules: dict[str, Any], num_gt: int) -> None:
    batch = 8
    gt, candidates = random_boxes(batch, num_gt), random_boxes(batch, 40)
    valid, crowd = torch.rand(2, batch, num_gt) < torch.tensor([0.8, 0.3]).view(2, 1, 1)
    matched_idxs, labels = match_boxes(gt, valid, crowd, candidates, **rules)
    for i in range(batch):
        objects = (valid & ~crowd)[i].nonzero()[:, 0]
        idxs, expected = reference.match(
            gt[i, objects].tolist(),
            gt[i, valid[i] & crowd[i]].tolist(),
            candidates[i].tolist(),
            **rules,
        )
        assert labels[i].tolist() == expected
        overlaps = box_iou(gt[i, objects], candidates[i]).sum(dim=0) > 0
        expected_idxs = [int(objects[k]) if len(objects) else 0 for k in idxs]
        assert matched_idxs[i, overlaps].tolist() == torch.tensor(expected_idxs)[overlaps].tolist()
    assert matched_idxs.min() >= 0
    assert matched_idxs.max() < num_gt


@parametrize_rules
def test_is_torchvisions(rules: dict[str, Any]) -> None:
    # every object overlaps some candidate: without one, theirs calls all candidates its best
    gt, candidates = random_boxes(1, 9, size=30) + torch.tensor([0, 0, 5, 5]), random_boxes(200)
    gt[0, :, 2:] += 1
    candidates = torch.cat([candidates, gt[0] + 1])
    everywhere = torch.ones(1, 9, dtype=torch.bool)
    matched_idxs, labels = match_boxes(gt, everywhere, ~everywhere, candidates, **rules)
    matcher = Matcher(rules["fg_thresh"], rules["bg_thresh"], rules["allow_low_quality"])
    expected = matcher(box_iou(gt[0], candidates))
    foreground = expected >= 0
    assert foreground.any()
    torch.testing.assert_close(matched_idxs[0, foreground], expected[foreground])
    torch.testing.assert_close(labels[0], torch.where(foreground, 1, 0) - 1 * (expected == -2))


# ten cells in a row: a candidate of n cells has an IoU of n / 10
THRESHOLD_CASES = {
    "at foreground": (7.0, 1),
    "just below": (6.99, -1),
    "at background": (3.0, -1),
    "below background": (2.99, 0),
    "touching": (0.0, 0),
}


@pytest.mark.parametrize(("cells", "label"), THRESHOLD_CASES.values(), ids=THRESHOLD_CASES)
def test_thresholds(cells: float, label: int) -> None:
    rules = RPN | {"allow_low_quality": False}
    _, labels = match([[0.0, 0, 10, 1]], [[0.0, 0, cells, 1]], **rules)
    assert labels == [label]


def test_equal_overlaps_go_to_the_first_object() -> None:
    gt = [[0.0, 0, 2, 2]] * 20
    idxs, _ = match(gt, [[0.0, 0, 2, 2], [1, 1, 3, 3]], **RPN)
    assert idxs == [0, 0]


def test_low_quality_takes_all_ties_and_keeps_their_own_best() -> None:
    # candidates 0 and 1 tie for object 0; candidate 2 is object 1's best, but overlaps 2 more
    gt: list[list[float]] = [[10, 0, 20, 10], [40, 0, 50, 10], [44, 0, 60, 10]]
    candidates: list[list[float]] = [
        [8, 0, 12, 10],
        [18, 0, 22, 10],
        [46, 0, 60, 10],
        [90, 0, 99, 10],
    ]
    idxs, labels = match(gt, candidates, **RPN)
    assert idxs[:3] == [0, 0, 2]
    assert labels == [1, 1, 1, 0]


def test_an_object_that_nothing_overlaps_makes_no_foreground() -> None:
    assert match([[80.0, 80, 90, 90]], [[0.0, 0, 5, 5], [0, 0, 0, 0]], **RPN)[1] == [0, 0]


def test_crowds() -> None:
    gt: list[list[float]] = [[0, 0, 10, 10], [20, 0, 60, 40]]
    candidates: list[list[float]] = [
        [20, 0, 60, 40],  # is the crowd: never foreground
        [15, 0, 25, 10],  # half inside
        [14, 0, 24, 10],  # less than half inside
        [0, 0, 10, 10],  # the object
    ]
    assert match(gt, candidates, crowds=1, **RPN)[1] == [-1, -1, 0, 1]
    # an object's best candidate stays foreground in a crowd
    assert match([[21.0, 0, 31, 9], gt[1]], [[20.0, 0, 26, 9]], crowds=1, **RPN)[1] == [1]


def test_without_objects_all_is_background() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    _, labels = match_boxes(torch.zeros(2, 3, 4), nothing, nothing, random_boxes(2, 9), **RPN)
    assert labels.count_nonzero() == 0


def test_no_candidates() -> None:
    valid = torch.ones(2, 3, dtype=torch.bool)
    idxs, labels = match_boxes(random_boxes(2, 3), valid, ~valid, random_boxes(2, 0), **RPN)
    assert idxs.shape == labels.shape == (2, 0)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    crowd = torch.rand(3, 11) < 0.2
    return random_boxes(3, 11), torch.rand(3, 11) < 0.8, crowd, random_boxes(3, 60)


@parametrize_rules
def test_a_batch_is_its_images(
    batch: tuple[Tensor, Tensor, Tensor, Tensor], rules: dict[str, Any]
) -> None:
    idxs, labels = match_boxes(*batch, **rules)
    for i in range(3):
        one_idxs, one_labels = match_boxes(*(part[i : i + 1] for part in batch), **rules)
        torch.testing.assert_close((idxs[i], labels[i]), (one_idxs[0], one_labels[0]))
    shared = batch[3][0]
    torch.testing.assert_close(
        match_boxes(*batch[:3], shared, **rules),
        match_boxes(*batch[:3], shared.expand(3, -1, -1), **rules),
    )


@parametrize_rules
def test_padding_changes_nothing(
    batch: tuple[Tensor, Tensor, Tensor, Tensor], rules: dict[str, Any]
) -> None:
    boxes, valid, crowd, candidates = batch
    more_boxes = torch.cat([boxes, torch.zeros(3, 8, 4)], dim=1)
    nothing = torch.zeros(3, 8, dtype=torch.bool)
    padded = (more_boxes, torch.cat([valid, nothing], 1), torch.cat([crowd, nothing], 1))
    expected = match_boxes(*batch, **rules)
    torch.testing.assert_close(match_boxes(*padded, candidates, **rules), expected)
    more_candidates = torch.cat([candidates, torch.zeros(3, 8, 4)], dim=1)
    idxs, labels = match_boxes(boxes, valid, crowd, more_candidates, **rules)
    torch.testing.assert_close((idxs[:, :60], labels[:, :60]), expected)
    assert labels[:, 60:].count_nonzero() == 0


@parametrize_rules
def test_order_of_the_truth_changes_nothing(rules: dict[str, Any]) -> None:
    boxes = torch.rand(1, 11, 2) * 10
    boxes = torch.cat([boxes, boxes + 1 + torch.rand(1, 11, 2) * 6], dim=-1)  # no two IoUs equal
    valid, crowd = torch.rand(2, 1, 11) < torch.tensor([0.8, 0.2]).view(2, 1, 1)
    candidates = random_boxes(60)
    order = torch.randperm(11)
    idxs, labels = match_boxes(boxes, valid, crowd, candidates, **rules)
    new_idxs, new_labels = match_boxes(
        boxes[:, order], valid[:, order], crowd[:, order], candidates, **rules
    )
    torch.testing.assert_close(new_labels, labels)
    overlaps = (box_iou(boxes, candidates) * (valid & ~crowd)[..., None]).sum(dim=1) > 0
    torch.testing.assert_close(order[new_idxs][overlaps], idxs[overlaps])
