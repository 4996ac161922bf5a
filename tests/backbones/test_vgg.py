"""VGG-16 against torchvision's, and the width of all networks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.vgg import VGG, make_layers

import backbones
from backbones import VGG16, Backbone, vgg16
from backbones.features import scaled_channels
from backbones.prediction import prepare_for_prediction
from backbones.resnet import build_resnet, cifar_resnet
from backbones.vgg import STAGES
from backbones.weights import to_torchvision
from engine.schema import LoopConfig
from tests.backbones.test_resnet import multiply_adds, num_parameters

WIDTH = 1 / 16


def narrow_torchvision(num_classes: int) -> nn.Module:
    """Return torchvision's VGG-16 with the channels of ours of width 1/16."""
    layers: list[str | int] = []
    for count, width in STAGES:
        layers += [scaled_channels(width, WIDTH)] * count + ["M"]
    with torch.device("meta"):  # its own fully connected layers are large
        network = VGG(nn.Sequential(), num_classes=num_classes, init_weights=False)
    network.features = make_layers(layers)
    network.classifier[0] = nn.Linear(32 * 49, 256)
    network.classifier[3] = nn.Linear(256, 256)
    network.classifier[6] = nn.Linear(256, num_classes)
    evaluated: nn.Module = network.eval()
    return evaluated


def randomize(model: nn.Module) -> None:
    """Give the biases values too, as after training."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.uniform_(-0.1, 0.1)


def tiny(num_classes: int | None = 5) -> VGG16:
    """Return an evaluated VGG-16 of a sixteenth of the channels, with random biases."""
    model = vgg16(num_classes, width_multiplier=WIDTH).eval()
    randomize(model)
    return model


@pytest.mark.parametrize("size", [(224, 224), (64, 64), (96, 256)], ids=str)
def test_logits_equal_torchvisions(size: tuple[int, int]) -> None:
    ours, theirs = tiny(), narrow_torchvision(5)
    theirs.load_state_dict(to_torchvision(ours), strict=True)
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
        features = theirs.get_submodule("features")(x)
        torch.testing.assert_close(F.max_pool2d(ours.features(x, 4)["c4"], 2), features)


def test_names_and_shapes_are_torchvisions() -> None:
    with torch.device("meta"):
        ours, theirs = vgg16(), torchvision.models.vgg16()
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in to_torchvision(ours).items()} == expected
    assert num_parameters(ours) == 138_357_544
    # section 3.4 of the ResNet paper has 15.3e9, which counts convolutions alone
    assert multiply_adds(ours, 224) / 1e9 == pytest.approx(15.3, rel=0.025)


@pytest.mark.parametrize("size", [(64, 64), (97, 33), (1, 50)], ids=str)
def test_features_have_the_shapes_of_their_specs(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = vgg16(None).eval()
        features = model.features(torch.zeros(2, 3, *size))
        assert list(model.features(torch.zeros(2, 3, *size), upto=4)) == ["c4"]
    specs = {name: (spec.channels, spec.stride) for name, spec in model.feature_specs.items()}
    assert specs == {"c4": (512, 16), "c5": (4096, 32)}
    assert features["c4"].shape == (2, 512, *(-(-side // 16) for side in size))
    assert features["c5"].shape == (2, 4096, 1, 1)


def test_stage_5_is_fc6_and_fc7_on_each_region() -> None:
    model = tiny(None)
    regions = torch.randn(3, 32, 7, 7)
    with torch.no_grad():
        for region, found in zip(regions, model.stage(regions, 5), strict=True):
            hidden = region.reshape(-1)
            for layer in (model.fc6, model.fc7):
                hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
            torch.testing.assert_close(found, hidden[:, None, None], rtol=1e-4, atol=1e-5)
        assert model.stage(regions[:0], 5).shape == (0, 256, 1, 1)


def test_pool_then_stage_pools_first() -> None:
    model, c4 = tiny(None), torch.randn(2, 32, 14, 21)

    def pool(x: Tensor, stride: int) -> Tensor:
        assert stride == 1
        return F.adaptive_avg_pool2d(x, 7)

    with torch.no_grad():
        found = model.pool_then_stage(c4, 5, pool=pool)
        torch.testing.assert_close(found, model.stage(F.adaptive_avg_pool2d(c4, 7), 5))


def test_dropout_is_for_training_alone() -> None:
    model, regions = tiny(None), torch.randn(64, 32, 7, 7)
    with torch.no_grad():
        model.fc7.weight.zero_()
        model.fc7.bias.fill_(3.0)  # so that fc7 gives 3 everywhere, before dropout
        assert (model.stage(regions, 5) == 3).all()
        dropped = model.train().stage(regions, 5)
        assert dropped.unique().tolist() == [0.0, 6.0]
        assert (dropped == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
        model.freeze_stages(5)  # fc6 and fc7 too
        assert (model.stage(regions, 5) == 3).all()


@pytest.mark.parametrize("count", range(6))
def test_frozen_stages_get_no_gradient(count: int) -> None:
    model = vgg16(2, width_multiplier=WIDTH)
    model.freeze_stages(5)
    model.freeze_stages(count)  # overrides the call before
    model.eval().train()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    names = [f"conv{stage}_" for stage in range(1, 6)][:count] + ["fc6", "fc7"] * (count == 5)
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    expected = [name for name, _ in model.named_parameters() if name.startswith(tuple(names))]
    assert frozen == set(expected if names else [])
    assert all(p.requires_grad == (n not in frozen) for n, p in model.named_parameters())
    assert model.dropout.training == (count < 5)


def test_random_weights_keep_the_activation_scale() -> None:
    model = vgg16(None, width_multiplier=0.25).eval()
    with torch.no_grad():
        for feature in model.features(torch.randn(1, 3, 64, 64)).values():
            assert 0.2 < feature.square().mean().sqrt() < 5
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))


def test_forward_hooks_see_the_convolutions() -> None:
    model, x = tiny(), torch.randn(1, 3, 32, 32)
    seen: list[Tensor] = []
    with torch.no_grad():
        expected = model(x)
        hook = lambda _module, _inputs, output: seen.append(output)  # noqa: E731
        model.get_submodule("conv3_2").register_forward_hook(hook)
        torch.testing.assert_close(model(x), expected)
    assert [tuple(each.shape) for each in seen] == [(1, 16, 8, 8)]


def test_features_compile_without_a_graph_break() -> None:
    model, x = tiny(), torch.randn(1, 3, 32, 32)
    compiled = torch.compile(model.features, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model.features(x))


def test_preparation_for_prediction_changes_nothing() -> None:
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        prepare_for_prediction(model, LoopConfig(precision="fp32"), device=torch.device("cpu"))
        x = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


NETWORKS: dict[str, Any] = {
    "resnet18": lambda **keys: build_resnet("resnet18", **keys),
    "resnet50": lambda **keys: build_resnet("resnet50", **keys),
    "plain34": lambda **keys: build_resnet("plain34", **keys),
    "cifar": lambda **keys: cifar_resnet(20, None, **keys),
    "vgg16": lambda **keys: vgg16(None, **keys),
}


def shapes(model: Backbone) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Halve channels: the first two dimensions, but not the three colours."""
    return tuple(n if dim > 1 or n == 3 else n // 2 for dim, n in enumerate(shape))


@pytest.mark.parametrize("name", NETWORKS)
def test_width_multiplier_scales_every_layer(name: str) -> None:
    with torch.device("meta"):
        default, whole, half = (
            NETWORKS[name](**keys)
            for keys in ({}, {"width_multiplier": 1.0}, {"width_multiplier": 0.5})
        )
    assert shapes(default) == shapes(whole)
    assert shapes(half) == {layer: halved(shape) for layer, shape in shapes(whole).items()}
    for key, spec in half.feature_specs.items():
        assert spec.channels * 2 == whole.feature_specs[key].channels
        assert spec.stride == whole.feature_specs[key].stride


@pytest.mark.parametrize("multiplier", [1e-6, 0.03, 0.7])
@pytest.mark.parametrize("name", NETWORKS)
def test_odd_widths_are_rounded_to_at_least_8(name: str, multiplier: float) -> None:
    model = NETWORKS[name](width_multiplier=multiplier)
    first = next(iter(model.parameters()))
    assert len(first) == max(8, round((16 if name == "cifar" else 64) * multiplier))
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape[0] == 1


@pytest.mark.parametrize("kind", ["plain18", "plain34"])
def test_plain_kinds_are_the_plain_networks(kind: str) -> None:
    with torch.device("meta"):
        expected = getattr(backbones, kind)(None)
        assert shapes(build_resnet(kind)) == shapes(expected)
    plain, x = build_resnet(kind, width_multiplier=0.125).eval(), torch.randn(1, 3, 32, 32)
    residual = build_resnet(kind.replace("plain", "resnet"), shortcut="A", width_multiplier=0.125)
    residual.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert not torch.allclose(plain(x), residual.eval()(x))
