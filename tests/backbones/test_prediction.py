"""Networks prepared for prediction: the same results from fewer layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.fpn import FPN
from backbones.norm import FrozenBatchNorm2d, NormKind
from backbones.prediction import prepare_for_prediction
from backbones.resnet import ResNet, build_resnet
from engine.schema import LoopConfig, Precision

CPU = torch.device("cpu")
NORMS = nn.BatchNorm2d | FrozenBatchNorm2d


class Pyramid(nn.Module):
    """A residual network and its feature pyramid."""

    def __init__(self, kind: str, norm: NormKind, **settings: Any) -> None:
        super().__init__()
        self.backbone: ResNet = build_resnet(kind, norm=norm, **settings)
        self.fpn = FPN(self.backbone.feature_specs, channels=16, norm="batch")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return all feature maps."""
        features = self.backbone.features(x)
        pooled = self.backbone.pool_then_stage(
            features["c4"], 5, pool=lambda m, s: m[..., ::s, ::s]
        )
        return [*features.values(), *self.fpn(features).values(), pooled]


def norms_of(network: nn.Module) -> list[nn.Module]:
    kinds = nn.BatchNorm2d | FrozenBatchNorm2d | nn.GroupNorm
    return [each for each in network.modules() if isinstance(each, kinds)]


def trained(network: nn.Module) -> nn.Module:
    """Give the norms statistics and weights as training does; return it in evaluation mode."""
    for norm in network.modules():
        if isinstance(norm, NORMS):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.0)
    return network.eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "norm", "settings"),
    [
        ("resnet18", "batch", {}),
        ("resnet50", "frozen", {}),
        ("resnet18", "fixed_statistics", {}),
        ("resnet50", "batch", {"stride_in_1x1": True}),
        ("resnet18", "batch", {"shortcut": "A"}),
    ],
)
def test_maps_are_those_of_the_network_as_it_was(
    kind: str, norm: NormKind, settings: dict[str, Any], precision: Precision
) -> None:
    network = trained(Pyramid(kind, norm, **settings))
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = network(x)
        prepare_for_prediction(network, LoopConfig(precision=precision), device=CPU)
        found = network(x)
    tolerance = {"fp32": 1e-5, "bf16": 0.03}[precision]
    for ours, before in zip(found, expected, strict=True):
        assert ours.dtype == before.dtype
        scale = float(before.abs().max())
        torch.testing.assert_close(ours, before, rtol=0, atol=tolerance * scale)
    assert not any(isinstance(each, NORMS) for each in network.modules())


def test_what_depends_on_the_map_stays() -> None:
    group, hooked, training = (
        build_resnet("resnet18", norm=n) for n in ("group", "batch", "batch")
    )
    group.eval()
    hooked.eval().bn1.register_forward_hook(lambda *_: None)
    training.train()
    num_norms = len(norms_of(training))
    for network, kept in ((group, num_norms), (hooked, 1), (training, num_norms)):
        prepare_for_prediction(network, LoopConfig(), device=CPU)
        assert len(norms_of(network)) == kept
    assert isinstance(hooked.bn1, nn.BatchNorm2d)
