from typing import Any, Literal

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from detection.ops.roi_pool import assign_levels, pool_rois
from tests.reference import roi_pool as reference

pytestmark = pytest.mark.usefixtures("kernels")

STRIDES = (4, 8, 16, 32)
SIZE = (96, 128)
# in an image of 96 x 128
BOXES = {
    "inside": [20.0, 30.0, 70.0, 80.0],
    "whole image": [0.0, 0.0, 128.0, 96.0],
    "over the border": [-30.0, -20.0, 40.0, 50.0],
    "over the far border": [100.0, 70.0, 190.0, 150.0],
    "outside": [200.0, 200.0, 260.0, 240.0],
    "tiny": [50.3, 40.2, 50.9, 41.1],
    "no area": [64.0, 48.0, 64.0, 48.0],
    "turned around": [60.0, 60.0, 40.0, 40.0],
    "corner of a cell": [32.0, 32.0, 64.0, 64.0],
    "larger than the map": [-90.0, -70.0, 200.0, 150.0],
    "flat": [-40.0, 50.0, 160.0, 50.5],
}
CHANNELS = pytest.mark.parametrize("channels", [3, 64], ids=["3 channels", "64 channels"])
ALIGNED = pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "not aligned"])


def make_features(*, levels: int = 4, channels: int = 3, dtype: torch.dtype) -> list[Tensor]:
    """Pyramid of two images, in the memory layouts that come up."""
    features = [
        torch.randn(2, channels, SIZE[0] // stride, SIZE[1] // stride, dtype=dtype)
        for stride in STRIDES[:levels]
    ]
    features[0] = features[0].contiguous(memory_format=torch.channels_last)
    return [feature.requires_grad_() for feature in features]


def make_boxes(count: int) -> Tensor:
    """(2, count, 4): sides of 1 to 800, so that every level has some; many over the border."""
    centers = torch.rand(2, count, 2) * torch.tensor([128, 96])
    sides = torch.logspace(0, 2.9, count)[:, None] * (0.7 + 0.6 * torch.rand(2, count, 2))
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=-1)


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@ALIGNED
@CHANNELS
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
def test_roi_align_is_the_reference(
    box: list[float], aligned: bool, channels: int, sampling_ratio: int
) -> None:
    (feature,) = make_features(levels=1, channels=channels, dtype=torch.float64)
    pooled = pool_rois(
        [feature],
        [4],
        torch.tensor([[box], [box]]),
        kind="roi_align",
        resolution=3,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )
    for image in range(2):
        expected = reference.roi_align(
            feature[image].detach(),
            box,
            stride=4,
            resolution=3,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
        torch.testing.assert_close(pooled[image].detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_roi_pool_is_the_reference(box: list[float]) -> None:
    (feature,) = make_features(levels=1, dtype=torch.float32)
    boxes = torch.tensor([[box], [box]])
    pooled = pool_rois([feature], [4], boxes, kind="roi_pool", resolution=3)
    for image in range(2):
        expected = reference.roi_pool(feature[image].detach(), box, stride=4, resolution=3)
        torch.testing.assert_close(pooled[image].detach(), expected)


def torchvision_pool(
    features: list[Tensor], boxes: Tensor, *, kind: str, resolution: int, **align: Any
) -> Tensor:
    """Each region by torchvision's operator, on the level that its mapper chooses."""
    levels = [0] * boxes[..., 0].numel()
    if len(features) > 1:
        levels = LevelMapper(2, len(features) + 1)(list(boxes)).tolist()
    pooled = []
    for i, level in enumerate(levels):
        roi = torch.cat([torch.tensor([float(i // boxes.shape[1])]), boxes.flatten(0, 1)[i]])[None]
        scale = 1 / STRIDES[level]
        feature, roi = features[level], roi.to(features[level].dtype)
        if kind == "roi_pool":
            pooled.append(torchvision.ops.roi_pool(feature, roi, resolution, scale))
        else:
            pooled.append(torchvision.ops.roi_align(feature, roi, resolution, scale, **align))
    return torch.cat(pooled)


POOLS: dict[str, dict[str, Any]] = {
    "roi_pool": {"kind": "roi_pool", "resolution": 7},
    "align": {"kind": "roi_align", "resolution": 7, "sampling_ratio": 2, "aligned": True},
    "align 14": {"kind": "roi_align", "resolution": 14, "sampling_ratio": 1, "aligned": True},
    "not aligned": {"kind": "roi_align", "resolution": 7, "sampling_ratio": 2, "aligned": False},
    "adaptive": {"kind": "roi_align", "resolution": 5, "sampling_ratio": 0, "aligned": True},
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("levels", [1, 4], ids=["one level", "four levels"])
@pytest.mark.parametrize("channels", [5, 65], ids=["5 channels", "65 channels"])
def test_is_torchvisions_forward_and_backward(
    pool: dict[str, Any], levels: int, channels: int
) -> None:
    features = make_features(levels=levels, channels=channels, dtype=torch.float32)
    boxes = torch.cat([make_boxes(12), torch.tensor([list(BOXES.values())] * 2)], dim=1)
    if levels > 1:
        boxes[..., 2:] = boxes[..., 2:].maximum(boxes[..., :2])  # their mapper takes no others
    ours = pool_rois(features, STRIDES[:levels], boxes, **pool)
    theirs = torchvision_pool(features, boxes, **({"sampling_ratio": 0} | pool))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, features, grad),
        torch.autograd.grad(theirs, features, grad),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize("kind", ["roi_align", "roi_pool"])
def test_gradient(kind: Literal["roi_align", "roi_pool"]) -> None:
    features = make_features(levels=2, channels=2, dtype=torch.float64)
    small = [feature.detach()[:, :, :5, :6].clone().requires_grad_() for feature in features]
    boxes = torch.tensor([[[2.0, 3, 15, 14], [-9, 4, 30, 18]], [[0, 0, 23, 19], [8, 8, 9, 9]]])

    def pool(*levels: Tensor) -> Tensor:
        return pool_rois(levels, STRIDES[:2], boxes, kind=kind, resolution=2)

    assert torch.autograd.gradcheck(pool, small)


@pytest.mark.parametrize("bin_stride", [1, 2])
def test_gradient_of_adaptive_roi_align(bin_stride: int) -> None:
    features = make_features(levels=2, channels=64, dtype=torch.float64)
    small = [feature.detach()[:1, :, :3, :4].clone().requires_grad_() for feature in features]
    # a few samples per bin; over the border; on the second level; NaN; outside
    boxes = torch.tensor(
        [[[2.0, 1, 15, 9], [-9, 4, 30, 18], [0, 0, 230, 230], [torch.nan] * 4, [90, 0, 99, 9]]]
    )

    def pool(*levels: Tensor) -> Tensor:
        return pool_rois(
            levels,
            STRIDES[:2],
            boxes,
            kind="roi_align",
            resolution=3,
            sampling_ratio=0,
            bin_stride=bin_stride,
        ).nan_to_num()

    assert torch.autograd.gradcheck(pool, small, fast_mode=True)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_a_batch_is_its_images(pool: dict[str, Any]) -> None:
    features, boxes = make_features(channels=64, dtype=torch.float32), make_boxes(6)
    pooled = pool_rois(features, STRIDES, boxes, **pool)
    for i in range(2):
        one = pool_rois([f[i : i + 1] for f in features], STRIDES, boxes[i : i + 1], **pool)
        torch.testing.assert_close(pooled[6 * i : 6 * i + 6], one)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("stride", [2, 3])
def test_every_second_or_third_bin(pool: dict[str, Any], stride: int) -> None:
    features = make_features(channels=64, dtype=torch.float32)
    arguments = {"boxes": make_boxes(5), "resolution": 7, **pool}
    whole = pool_rois(features, STRIDES, **arguments)
    part = pool_rois(features, STRIDES, **arguments, bin_stride=stride)
    torch.testing.assert_close(part, whole[..., ::stride, ::stride])


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_no_regions(pool: dict[str, Any]) -> None:
    features = make_features(channels=64, dtype=torch.float32)
    pooled = pool_rois(features, STRIDES, torch.zeros(2, 0, 4), **pool)
    side = pool["resolution"]
    assert pooled.shape == (0, 64, side, side)
    for grad in torch.autograd.grad(pooled.sum(), features):
        assert grad.count_nonzero() == 0


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_bfloat16_accumulates_in_float32(sampling_ratio: int) -> None:
    # 400 equal regions add up in the same cells: a bfloat16 sum would stop growing at 256 steps
    boxes = torch.tensor([20.0, 30.0, 41.0, 51.0]).expand(2, 400, 4)
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        feature = torch.ones(2, 64, *SIZE, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            pooled = pool_rois(
                [feature],
                [1],
                boxes,
                kind="roi_align",
                resolution=7,
                sampling_ratio=sampling_ratio,
            )
        assert pooled.dtype == dtype
        torch.testing.assert_close(
            pooled.float(), torch.ones_like(pooled).float(), rtol=0, atol=0.02
        )
        (grad,) = torch.autograd.grad(pooled.sum(), feature)
        grads.append(grad.float())
    torch.testing.assert_close(grads[1], grads[0], rtol=0.02, atol=0.5)


@pytest.mark.parametrize("pool", [POOLS["align"], POOLS["adaptive"]], ids=["fixed", "adaptive"])
def test_gradient_repeats_to_the_bit(pool: dict[str, Any]) -> None:
    features = make_features(channels=64, dtype=torch.float32)
    pooled = pool_rois(features, STRIDES, make_boxes(100), **pool)
    first = torch.autograd.grad(pooled.sum(), features, retain_graph=True)
    again = torch.autograd.grad(pooled.sum(), features)
    torch.testing.assert_close(first, again, rtol=0, atol=0)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_box_that_is_not_finite_reads_no_cell_outside_the_map(
    value: float, sampling_ratio: int
) -> None:
    features = make_features(channels=64, dtype=torch.float32)
    boxes = torch.tensor([[[value] * 4, BOXES["inside"]]]).expand(2, -1, -1)
    pooled = pool_rois(
        features,
        STRIDES,
        boxes,
        kind="roi_align",
        resolution=7,
        sampling_ratio=sampling_ratio,
    )
    assert pooled[0].isnan().all()
    assert pooled[1].isfinite().all()


def test_levels_are_the_reference_and_torchvisions() -> None:
    sides = [0.0, 1.0, 112.0, 223.9, 223.9999, 224.0, 447.9, 448.0, 1e4, *(torch.rand(50) * 900)]
    boxes = torch.tensor([[3.0, 5.0, 3.0 + side, 5.0 + side] for side in sides])
    boxes = torch.cat([boxes, make_boxes(50)[0]])
    levels = assign_levels(boxes, num_levels=4)
    assert levels.tolist() == [reference.level_of(box, 4) for box in boxes.tolist()]
    torch.testing.assert_close(levels, LevelMapper(2, 5)([boxes]))
    assert assign_levels(torch.zeros(2, 0, 4), num_levels=4).shape == (2, 0)
