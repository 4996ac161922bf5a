from collections.abc import Sequence

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from detection.models.anchors import AnchorGenerator

RATIOS = (0.5, 1.0, 2.0)
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
PYRAMID_STRIDES = (4, 8, 16, 32, 64)

LAYOUTS = [
    pytest.param([SIZES], (16,), id="c4"),
    pytest.param([[size] for size in SIZES], PYRAMID_STRIDES, id="fpn"),
]


@pytest.mark.parametrize(("sizes", "strides"), LAYOUTS)
def test_anchors_are_torchvisions(sizes: list[list[float]], strides: Sequence[int]) -> None:
    height, width = 128, 192
    shapes = [(height // stride, width // stride) for stride in strides]
    anchors = AnchorGenerator(sizes, ratios=RATIOS, strides=strides)(shapes)

    theirs = TorchvisionAnchors(tuple(tuple(s) for s in sizes), (RATIOS,) * len(sizes))
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    expected = theirs(images, [torch.zeros(1, 1, *shape) for shape in shapes])[0]
    torch.testing.assert_close(anchors, expected, rtol=0, atol=0)


def test_order_is_level_row_column_ratio_size() -> None:
    generator = AnchorGenerator([[8, 16], [32, 64]], ratios=[0.25, 1.0], strides=[10, 20])
    anchors = generator([(2, 3), (1, 1)])
    assert generator.num_anchors == 4
    assert anchors.shape == ((6 + 1) * 4, 4)
    torch.testing.assert_close(anchors[0], torch.tensor([-8.0, -2.0, 8.0, 2.0]))
    torch.testing.assert_close(anchors[3], torch.tensor([-8.0, -8.0, 8.0, 8.0]))
    torch.testing.assert_close(anchors[4], anchors[0] + torch.tensor([10, 0, 10, 0]))
    torch.testing.assert_close(anchors[12], anchors[0] + torch.tensor([0, 10, 0, 10]))
    torch.testing.assert_close(anchors[25], torch.tensor([-64.0, -16.0, 64.0, 16.0]))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param((64, 96), (4, 6), id="whole_map"),
        pytest.param((32, 64), (2, 4), id="multiple_of_the_divisor"),
        pytest.param((33, 1), (4, 2), id="rounded_up_to_the_divisor"),
    ],
)
def test_valid_anchors_start_inside_the_own_frame(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    generator = AnchorGenerator([[32.0]], ratios=[1.0, 2.0], strides=[16])
    valid = generator.valid([(4, 6)], torch.tensor([size]), size_divisor=32)
    cells = valid.view(4, 6, 2)
    rows, columns = expected
    assert cells[:rows, :columns].all()
    assert cells.sum() == rows * columns * 2


@pytest.mark.parametrize(("sizes", "strides"), LAYOUTS)
def test_padding_further_adds_no_valid_anchor(
    sizes: list[list[float]], strides: Sequence[int]
) -> None:
    generator = AnchorGenerator(sizes, ratios=RATIOS, strides=strides)
    image_sizes = torch.tensor([[75, 100], [96, 33]])

    def valid_anchors(height: int, width: int) -> list[torch.Tensor]:
        # a stride 2 layer rounds odd lengths up
        shapes = [(-(-height // stride), -(-width // stride)) for stride in strides]
        valid = generator.valid(shapes, image_sizes, size_divisor=32)
        return [generator(shapes)[row] for row in valid]

    for small, large in zip(valid_anchors(96, 128), valid_anchors(224, 160), strict=True):
        torch.testing.assert_close(small, large, rtol=0, atol=0)


def test_nothing_of_it_is_in_the_state_dict() -> None:
    assert AnchorGenerator([[32.0]], ratios=[1.0], strides=[16]).state_dict() == {}


@pytest.mark.parametrize("ratio", RATIOS)
def test_exact_anchors_have_their_area_and_ratio(ratio: float) -> None:
    anchors = AnchorGenerator([[30.0]], ratios=[ratio], strides=[16], rounded=False)([(1, 1)])
    sides = anchors[0, 2:] - anchors[0, :2]
    torch.testing.assert_close(sides.prod(), torch.tensor(900.0))
    torch.testing.assert_close(sides[1] / sides[0], torch.tensor(ratio))
    torch.testing.assert_close(anchors[0, :2], -anchors[0, 2:])
