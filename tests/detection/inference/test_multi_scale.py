"""The scales of RoIs, and features merged over two of them, against one RoI at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detection.inference.multi_scale import MultiScaleRegions, nearest_scales, scale_factors
from detection.structures import ImageBatch
from tests.detection.inference.networks import NECKS, make_config, make_network
from tests.reference import inference as reference

SIZE = (600, 800)
SIZES = [(200, 267), (400, 533), (600, 800), (800, 1067), (1000, 1333)]
ODD = torch.tensor(
    [
        [0.0, 0, 800, 600],  # the whole image
        [0, 0, 224, 224],
        [10, 10, 10, 10],  # empty
        [30, 20, 10, 5],  # inside out
        [799, 599, 800, 600],
        [-50, -50, 900, 700],  # more than the image
        [0, 0, 800, 1e-3],
        [0, 0, torch.inf, 5],
        [0, 0, torch.nan, 5],
    ]
)


def random_boxes(count: int) -> Tensor:
    """Return (count, 4) boxes of very different sizes in an image of `SIZE`."""
    far = torch.tensor([800.0, 600.0])
    centers = torch.rand(count, 2) * far
    sides = torch.exp(torch.rand(count, 2) * 5) * 6
    corners = [(centers - sides / 2).clamp(min=0), torch.minimum(centers + sides / 2, far)]
    return torch.cat(corners, dim=1)


def images_of(*sizes: tuple[int, int]) -> ImageBatch:
    """Return images without content; `scale_factors` uses their sizes alone."""
    count = len(sizes)
    return ImageBatch(
        pixels=torch.zeros(count, 3, 1, 1, dtype=torch.uint8),
        sizes=torch.tensor(sizes),
        original_sizes=torch.tensor(sizes),
        image_ids=torch.arange(count),
        seeds=torch.arange(count),
    )


def factors_of(sizes: list[tuple[int, int]]) -> Tensor:
    """Return (1, S, 4)."""
    return scale_factors(images_of(SIZE), [images_of(size) for size in sizes])


def test_factors_are_of_each_side() -> None:
    images = images_of((100, 200), (50, 80))
    factors = scale_factors(images, [images_of((50, 100), (25, 41)), images])
    expected = [[[0.5] * 4, [1.0] * 4], [[0.5125, 0.5] * 2, [1.0] * 4]]
    torch.testing.assert_close(factors, torch.tensor(expected))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_scales_are_those_of_the_reference(count: int) -> None:
    sizes = SIZES[-count:]
    boxes = torch.cat([random_boxes(300), ODD[:-2]])
    found = nearest_scales(boxes[None], factors_of(sizes))[0]
    expected = [reference.two_scales(box, SIZE, sizes) for box in boxes.tolist()]
    assert found.tolist() == expected
    assert len({tuple(sorted(pair)) for pair in expected}) == count - 1  # all that are adjacent
    assert (found.diff(dim=1).abs() == 1).all()


def test_any_box_has_two_scales_and_the_smaller_of_equals() -> None:
    found = nearest_scales(ODD[None], factors_of(SIZES))
    assert found.shape == (1, len(ODD), 2)
    assert ((found >= 0) & (found < len(SIZES))).all()
    for row in (2, 3, 7, 8):  # without an area
        assert found[0, row].tolist() == [0, 1]
    assert nearest_scales(ODD[None, :0], factors_of(SIZES)).shape == (1, 0, 2)
    # a side that is capped, or an image of a pixel, is the same at two scales
    assert nearest_scales(ODD[None, :1], factors_of([SIZE, SIZE]))[0, 0].tolist() == [0, 1]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("pool", ["roi_align", "roi_pool"])
@pytest.mark.parametrize("neck", NECKS)
@torch.no_grad()
def test_features_are_the_maximum_of_two_plain_ones(neck: str, pool: str) -> None:
    network = make_network(make_config(neck, roi={"pool": pool}))
    pyramids = [pyramid_of(network, size, count=2) for size in SIZES[1:4]]
    factors = factors_of(SIZES[1:4]).expand(2, -1, -1)
    boxes = torch.stack([torch.cat([random_boxes(9), ODD[:-2]]) for _ in range(2)])
    found = MultiScaleRegions(network, pyramids, factors).vectors(boxes, 0)
    for row in range(2):
        maps = [{name: each[row][None] for name, each in of.items()} for of in pyramids]
        rois = reference.RoIs(network, maps, SIZES[1:4], SIZE)
        expected = torch.stack([rois.vector(box, 0) for box in boxes[row].tolist()])
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-4)
    none = MultiScaleRegions(network, pyramids, factors).vectors(boxes[:, :0], 0)
    assert none.shape == (2, 0, found.shape[2])


def pyramid_of(network: Any, size: tuple[int, int], *, count: int) -> dict[str, Tensor]:
    """Return random feature maps of images of a size, channels-last as a network makes them."""
    channels = 256 if network.fpn is None else 8
    maps = {}
    for level, stride in zip(network.roi_levels, network.roi_strides, strict=True):
        shape = [-(-side // stride) for side in size]
        features = torch.randn(count, channels, *shape)
        maps[level] = features.contiguous(memory_format=torch.channels_last)
    return maps


class ConvolutionInputs(TorchDispatchMode):
    """Notes the shapes of the maps that convolutions read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "conv" in func.overloadpacket.__name__:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_conv5_shares_its_first_convolution_over_the_maps_of_each_scale() -> None:
    """With bottlenecks, conv5 begins on the maps: once a scale, not once a RoI."""
    config = make_config("c4")
    backbone = config.model.backbone.model_copy(update={"kind": "resnet50"})
    model = config.model.model_copy(update={"backbone": backbone})
    network = make_network(config.model_copy(update={"model": model}))
    sizes = [(64, 85), (96, 128)]
    pyramids = [
        {"c4": torch.randn(1, 1024, -(-height // 16), -(-width // 16))} for height, width in sizes
    ]
    factors = scale_factors(images_of(sizes[0]), [images_of(size) for size in sizes])
    boxes = torch.tensor([[[0.0, 0, 85, 64], [5, 6, 40, 50], [60, 1, 64, 9]]])
    with ConvolutionInputs() as inputs:
        found = MultiScaleRegions(network, pyramids, factors).vectors(boxes, 0)
    # its first convolution and its shortcut, on the cells of both maps
    assert [each for each in inputs.shapes if each[1] == 1024] == [(1, 1024, 1, 4 * 6 + 6 * 8)] * 2
    rois = reference.RoIs(network, pyramids, sizes, sizes[0])
    expected = torch.stack([rois.vector(box, 0) for box in boxes[0].tolist()])
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-4)
