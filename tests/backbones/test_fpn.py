from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from backbones import FPN, FeatureSpec, resnet18

SPECS = {f"c{i}": FeatureSpec(4 * 2**i, 2**i) for i in range(2, 6)}


def features_of(height: int, width: int) -> dict[str, Tensor]:
    return {
        name: torch.randn(2, spec.channels, -(-height // spec.stride), -(-width // spec.stride))
        for name, spec in SPECS.items()
    }


@pytest.mark.parametrize("size", [(64, 96), (61, 75), (33, 200)], ids=str)
def test_output_equals_torchvisions_with_the_same_weights(size: tuple[int, int]) -> None:
    ours = FPN(SPECS, channels=12)
    theirs = FeaturePyramidNetwork(
        [spec.channels for spec in SPECS.values()], 12, extra_blocks=LastLevelMaxPool()
    )
    theirs.load_state_dict(
        {
            name.replace("inner.", "inner_blocks.").replace("layer.", "layer_blocks.")[: -len(p)]
            + f"0.{p}": tensor
            for name, tensor in ours.state_dict().items()
            for p in [name.rsplit(".", 1)[1]]
        }
    )
    features = features_of(*size)
    got = ours(features)
    expected = theirs(OrderedDict(features))
    assert list(got) == ["p2", "p3", "p4", "p5", "p6"]
    for ours_level, theirs_level in zip(got.values(), expected.values(), strict=True):
        torch.testing.assert_close(ours_level, theirs_level)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norm_replaces_the_bias_of_every_convolution(norm: str) -> None:
    fpn = FPN(SPECS, channels=8, norm=norm)  # type: ignore[arg-type]
    kind = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm}[norm]
    assert sum(isinstance(module, kind) for module in fpn.modules()) == 8
    assert all(m.bias is None for m in fpn.modules() if isinstance(m, nn.Conv2d))
    assert fpn(features_of(32, 32))["p2"].shape == (2, 8, 8, 8)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_first_weights_are_caffe2s_xavier(norm: str) -> None:
    for name, weight in FPN(SPECS, channels=64, norm=norm).state_dict().items():  # type: ignore[arg-type]
        if weight.ndim == 4:
            bound = (3 / weight[0].numel()) ** 0.5  # of a uniform distribution with std fan_in^-0.5
            assert 0.95 * bound < weight.abs().max() <= bound
        elif name.endswith("bias"):
            assert not weight.any()


def test_feature_specs_on_a_backbone() -> None:
    backbone = resnet18(num_classes=None).eval()
    fpn = FPN(backbone.feature_specs)
    levels = fpn(backbone.features(torch.randn(1, 3, 65, 130)))
    assert {name: spec.stride for name, spec in fpn.feature_specs.items()} == {
        "p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64,
    }  # fmt: skip
    for name, spec in fpn.feature_specs.items():
        shape = (1, spec.channels, -(-65 // spec.stride), -(-130 // spec.stride))
        assert levels[name].shape == shape, name
