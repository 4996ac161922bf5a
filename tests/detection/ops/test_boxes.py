import pytest
import torch
import torchvision
from torch import Tensor

from detection.ops.boxes import (
    box_area,
    box_iou,
    clip_boxes,
    generalized_iou,
    xywh_to_xyxy,
    xyxy_to_xywh,
)
from tests.reference import boxes as reference
from tests.reference.localization import giou

EMPTY = torch.zeros(0, 4)
UNIT = torch.tensor([[0.0, 0, 1, 1]])
CASES = {
    "no boxes": (EMPTY, EMPTY),
    "none against some": (EMPTY, UNIT),
    "same": (UNIT, UNIT),
    "touching side": (UNIT, torch.tensor([[1.0, 0, 2, 1]])),
    "touching corner": (UNIT, torch.tensor([[1.0, 1, 2, 2]])),
    "inside": (torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[1.0, 1, 2, 2]])),
    "no area": (torch.zeros(1, 4), torch.tensor([[0.0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 1, 1]])),
    "turned around": (torch.tensor([[3.0, 3, 1, 1]]), torch.tensor([[0.0, 0, 5, 5]])),
}


def random_boxes(*shape: int, size: int = 12) -> Tensor:
    """Whole-numbered boxes, many of them equal, touching or without area."""
    return torch.randint(0, size, (*shape, 2, 2)).float().sort(dim=-2).values.flatten(-2)


@pytest.mark.parametrize(("a", "b"), CASES.values(), ids=CASES)
def test_iou_is_the_reference(a: Tensor, b: Tensor) -> None:
    expected = [[reference.iou(x, y) for y in b.tolist()] for x in a.tolist()]
    torch.testing.assert_close(box_iou(a, b), torch.tensor(expected).view(len(a), len(b)))
    crowd = torch.ones(len(a), dtype=torch.bool)
    expected = [[reference.ioa(x, y) for y in b.tolist()] for x in a.tolist()]
    shares = box_iou(a, b, is_crowd=crowd)
    torch.testing.assert_close(shares, torch.tensor(expected).view(len(a), len(b)))


def test_iou_is_torchvisions() -> None:
    a, b = random_boxes(20) + torch.tensor([0, 0, 1, 1]), random_boxes(30)
    torch.testing.assert_close(box_iou(a, b), torchvision.ops.box_iou(a, b))
    torch.testing.assert_close(box_area(b), torchvision.ops.box_area(b))


def test_iou_of_a_batch_is_that_of_its_images() -> None:
    a, b = random_boxes(3, 5), random_boxes(3, 7)
    crowd = torch.rand(3, 5) < 0.5
    expected = [box_iou(a[i], b[i], is_crowd=crowd[i]) for i in range(3)]
    torch.testing.assert_close(box_iou(a, b, is_crowd=crowd), torch.stack(expected))
    torch.testing.assert_close(box_iou(a, b[0]), box_iou(a, b[:1].expand(3, -1, -1)))


def test_clip_cuts_every_image_to_its_own_size() -> None:
    boxes = torch.tensor([[[-3.0, -1, 50, 60], [2, 3, 4, 5], [90, 90, 99, 99]]]).repeat(2, 1, 1)
    sizes = torch.tensor([[20, 30], [100, 40]])
    expected = [
        torchvision.ops.clip_boxes_to_image(image_boxes, size.tolist())
        for image_boxes, size in zip(boxes, sizes, strict=True)
    ]
    torch.testing.assert_close(clip_boxes(boxes, sizes), torch.stack(expected))
    assert clip_boxes(boxes[:, :0], sizes).shape == (2, 0, 4)


def test_xywh_there_and_back() -> None:
    boxes = random_boxes(2, 9)
    expected = torchvision.ops.box_convert(boxes, "xyxy", "xywh")
    torch.testing.assert_close(xyxy_to_xywh(boxes), expected)
    torch.testing.assert_close(xywh_to_xyxy(expected), boxes)


@pytest.mark.parametrize(("a", "b"), CASES.values(), ids=CASES)
def test_generalized_iou_is_the_reference(a: Tensor, b: Tensor) -> None:
    pairs = [(x, y) for x in a for y in b]
    rows = torch.cat([torch.stack(pair)[None] for pair in pairs] or [torch.zeros(0, 2, 4)])
    expected = [giou(x.tolist(), y.tolist()) for x, y in pairs]
    found = generalized_iou(rows[:, 0], rows[:, 1])
    torch.testing.assert_close(found, torch.tensor(expected))


def test_generalized_iou_is_torchvisions() -> None:
    a, b = (random_boxes(30) + torch.tensor([0, 0, 1, 1]) for _ in range(2))
    expected = 1 - torchvision.ops.generalized_box_iou_loss(a, b, reduction="none")
    torch.testing.assert_close(generalized_iou(a, b), expected, rtol=1e-4, atol=1e-5)
