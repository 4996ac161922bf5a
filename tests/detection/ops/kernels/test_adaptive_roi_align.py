import pytest
import torch
from torch import Tensor

from detection.ops.kernels.adaptive_roi_align import adaptive_align_operator
from detection.ops.roi_pool import pool_rois

STRIDES = (4, 8)


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck looks at its copies of maps
def test_operator_is_registered_as_it_behaves() -> None:
    maps = [torch.randn(2, side, side + 1, 3, requires_grad=True) for side in (6, 4)]
    levels = torch.tensor([[0, 1, 1], [0, 0, 1]])
    low, extents = 5 * torch.rand(6, 2) - 1, 5 * torch.rand(6, 2)
    torch.library.opcheck(adaptive_align_operator, (maps, levels, low, extents, 5, 2))


def test_only_the_part_of_the_map_that_a_region_covers_is_read() -> None:
    features = [torch.randn(1, 64, 96 // stride, 96 // stride) for stride in STRIDES]
    expected = _pool(features)
    features[0][..., 12, :] = torch.nan  # a row below the region
    features[1][:] = torch.nan  # a level without regions
    torch.testing.assert_close(_pool(features), expected)


def _pool(features: list[Tensor]) -> Tensor:
    boxes = torch.tensor([[[8.0, 8.0, 40.0, 40.0]]])
    return pool_rois(features, STRIDES, boxes, kind="roi_align", resolution=7, sampling_ratio=0)
