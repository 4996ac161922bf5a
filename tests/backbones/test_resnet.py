from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import backbones
from backbones.blocks import BasicBlock, Bottleneck, PaperBottleneck, Shortcut
from backbones.norm import FrozenBatchNorm2d, NormKind
from backbones.resnet import ResNet
from backbones.weights import to_torchvision
from engine.errors import UserError
from tests.reference.shortcuts import run_block

DEPTHS = (18, 34, 50, 101, 152)
CIFAR_MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}


def builder(name: str) -> Callable[..., ResNet]:
    function: Callable[..., ResNet] = getattr(backbones, name)
    return function


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def randomize_norms(model: nn.Module) -> None:
    """Randomise the norms' statistics and affine parameters, as after training."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight")):
            tensor.uniform_(0.8, 1.2)
        elif name.endswith(("running_mean", "bn1.bias", "bn2.bias")):
            tensor.uniform_(-0.1, 0.1)


def multiply_adds(model: nn.Module, size: int) -> int:
    """Count multiply-adds of convolutions and linear layers for one image; model on "meta"."""
    counts = []

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            counts.append(module.weight[0].numel() * output.numel())

    for module in model.modules():
        module.register_forward_hook(count)
    model.eval()(torch.zeros(1, 3, size, size, device="meta"))
    return sum(counts)


@pytest.mark.parametrize("norm", ["batch", "frozen", "fixed_statistics", "group"])
@pytest.mark.parametrize("paper", [True, False], ids=["stride in 1x1", "stride in 3x3"])
@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
def test_pool_then_stage_equals_pooling_and_then_the_stage(
    kind: str, paper: bool, norm: NormKind
) -> None:
    model = backbones.build_resnet(kind, norm=norm, stride_in_1x1=paper).double().eval()
    randomize_norms(model)
    c4 = torch.randn(1, model.feature_specs["c4"].channels, 5, 6, dtype=torch.float64)
    # A linear pooling: two regions of 4x4 cells, each cell a weighted sum of the map. The weights
    # need not sum to one.
    weights = torch.rand(2, 4, 4, 5, 6, dtype=torch.float64)

    def pool(x: Tensor, stride: int) -> Tensor:
        return torch.einsum("mhwyx,cyx->mchw", weights, x[0])[..., ::stride, ::stride]

    with torch.inference_mode():
        expected = model.stage(pool(c4, 1), 5)
        torch.testing.assert_close(model.pool_then_stage(c4, 5, pool=pool), expected)


@pytest.mark.parametrize("depth", DEPTHS)
def test_logits_equal_torchvisions_with_our_weights(depth: int) -> None:
    ours = builder(f"resnet{depth}")().eval()
    randomize_norms(ours)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")().eval()
    theirs.load_state_dict(to_torchvision(ours), strict=True, assign=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize(
    ("depth", "count"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_parameter_counts(depth: int, count: int) -> None:
    with torch.device("meta"):
        assert num_parameters(builder(f"resnet{depth}")(num_classes=1000)) == count


@pytest.mark.parametrize(("depth", "millions"), list(CIFAR_MILLIONS.items()))
def test_cifar_parameter_counts(depth: int, millions: float) -> None:
    with torch.device("meta"):
        model = backbones.cifar_resnet(depth)
    assert round(num_parameters(model) / 1e6, 2 if millions < 1 else 1) == millions
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth


@pytest.mark.parametrize(
    ("name", "billions"),
    [("resnet18", 1.8), ("resnet34", 3.6), ("resnet50", 3.8), ("resnet101", 7.6),
     ("resnet152", 11.3), ("plain18", 1.8), ("plain34", 3.6)],
)  # fmt: skip
def test_multiply_adds_equal_the_papers_table_1(name: str, billions: float) -> None:
    with torch.device("meta"):
        if name.startswith("plain"):
            model = builder(name)()
        else:
            model = backbones.build_resnet(name, num_classes=1000, stride_in_1x1=True)
    assert multiply_adds(model, 224) / 1e9 == pytest.approx(billions, rel=0.025)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, PaperBottleneck])
@pytest.mark.parametrize("option", ["A", "B", "C", "none"])
def test_shortcuts_equal_the_reference(
    block: type[BasicBlock | Bottleneck], option: Shortcut
) -> None:
    model = ResNet(block, (2, 2), num_classes=None, shortcut=option, stem="cifar", widths=(3, 6))
    model.eval()
    randomize_norms(model)
    strided = "conv2" if block is Bottleneck else "conv1"
    with torch.inference_mode():
        x = torch.relu(model.bn1(model.conv1(torch.randn(1, 3, 5, 6))))
        for number in (2, 3):
            expected = x
            for index, part in enumerate(getattr(model, f"layer{number - 1}")):
                stride = 2 if (number, index) == (3, 0) else 1
                expected = run_block(part, expected, option=option, stride=stride, strided=strided)
            x = model.stage(x, number)
            torch.testing.assert_close(x, expected)


@pytest.mark.parametrize(
    ("option", "projections"), [("A", 0), ("B", 3), ("C", 16), ("none", 0)], ids=str
)
def test_number_of_projections_in_resnet34(option: Shortcut, projections: int) -> None:
    with torch.device("meta"):
        model = backbones.resnet34(shortcut=option)
    found = [name for name, _ in model.named_parameters() if name.endswith("downsample.0.weight")]
    assert len(found) == projections


@pytest.mark.parametrize("in_1x1", [True, False], ids=["paper", "torchvision"])
def test_stride_in_1x1(in_1x1: bool) -> None:
    with torch.device("meta"):
        model = backbones.resnet50(stride_in_1x1=in_1x1)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for stage in ("layer2", "layer3", "layer4"):
        strides = [convs[f"{stage}.0.conv{number}"].stride for number in (1, 2)]
        assert strides == ([(2, 2), (1, 1)] if in_1x1 else [(1, 1), (2, 2)])


@pytest.mark.parametrize("name", ["plain18", "plain34"])
def test_plain_nets_are_resnets_without_shortcuts(name: str) -> None:
    with torch.device("meta"):
        plain, option_a = builder(name)(), builder(name.replace("plain", "resnet"))(shortcut="A")
    assert num_parameters(plain) == num_parameters(option_a)
    assert not any(m.residual for m in plain.modules() if isinstance(m, BasicBlock))


@pytest.mark.parametrize("size", [(64, 64), (97, 33), (1, 50)], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_have_the_shapes_of_their_specs(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = builder(name)(num_classes=None).eval()
        features = model.features(torch.zeros(2, 3, *size))
    width = 256 if name == "resnet50" else 64
    assert list(features) == list(model.feature_specs) == ["c2", "c3", "c4", "c5"]
    for index, (key, spec) in enumerate(model.feature_specs.items()):
        assert (spec.channels, spec.stride) == (width * 2**index, 4 * 2**index)
        sides = [-(-side // spec.stride) for side in size]
        assert features[key].shape == (2, spec.channels, *sides)


def test_features_up_to_c4_and_stage_5_are_torchvisions() -> None:
    model = backbones.resnet18().eval()
    theirs = torchvision.models.resnet18().eval()
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = {}
        for number in range(1, 5):
            y = theirs.get_submodule(f"layer{number}")(y)
            expected[f"c{number + 1}"] = y
        found = model.features(x)
        torch.testing.assert_close(found, expected)
        upto4 = model.features(x, upto=4)
        torch.testing.assert_close(upto4, {key: expected[key] for key in ("c2", "c3", "c4")})
        torch.testing.assert_close(model.stage(upto4["c4"], 5), expected["c5"])


def test_without_classes_the_output_is_the_pooled_last_feature() -> None:
    model = backbones.cifar_resnet(8)
    x = torch.randn(2, 3, 32, 32)
    assert model(x).shape == (2, 10)
    assert {k: s.stride for k, s in model.feature_specs.items()} == {"c2": 1, "c3": 2, "c4": 4}
    headless = backbones.resnet18(num_classes=None).eval()
    with torch.no_grad():
        pooled = headless.features(x)["c5"].flatten(2).mean(dim=2)
        assert pooled.shape == (2, 512)
        torch.testing.assert_close(headless(x), pooled)
    assert not [name for name in headless.state_dict() if name.startswith("fc")]


@pytest.mark.parametrize("count", range(6))
def test_frozen_stages_keep_parameters_and_statistics(count: int) -> None:
    model = backbones.resnet18(num_classes=2)
    model.freeze_stages(5)
    model.freeze_stages(count)  # overrides the call before
    model.eval().train()
    stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    for index, names in enumerate(stages):
        frozen = index < count
        parts = [model.get_submodule(name) for name in names]
        assert all(p.requires_grad != frozen for part in parts for p in part.parameters())
        assert all((p.grad is None) == frozen for part in parts for p in part.parameters())
        means = [n for n in before if n.startswith(names) and n.endswith("running_mean")]
        moved = [not torch.equal(before[n], model.state_dict()[n]) for n in means]
        assert means
        assert moved == [not frozen] * len(means)


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_norm_option_applies_to_every_layer(norm: Any) -> None:
    with torch.device("meta"):
        model = backbones.build_resnet("resnet50", norm=norm, norm_eps=1e-3)
    kind = {"batch": nn.BatchNorm2d, "frozen": FrozenBatchNorm2d, "group": nn.GroupNorm}[norm]
    norms = [module for module in model.modules() if isinstance(module, kind)]
    assert len(norms) == 53
    assert {module.eps for module in norms} == {1e-3}


def test_he_initialisation_and_no_zeroed_norms() -> None:
    model = backbones.resnet18()
    weight = model.get_parameter("layer3.0.conv2.weight")  # 3x3, 256 to 256
    torch.testing.assert_close(weight.std().item(), (2 / (9 * 256)) ** 0.5, rtol=0.02, atol=0.0)
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_features_compile_without_a_graph_break() -> None:
    model = backbones.cifar_resnet(8).eval()
    x = torch.randn(1, 3, 16, 16)
    compiled = torch.compile(model.features, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model.features(x))


@pytest.mark.parametrize("depth", [0, 2, 21])
def test_cifar_depth_is_6n_plus_2(depth: int) -> None:
    with pytest.raises(UserError, match=rf"depth: expected 6n\+2 .*, got {depth}"):
        backbones.cifar_resnet(depth)


@pytest.mark.parametrize(
    ("depth", "norm"), [(18, "frozen"), (101, "frozen"), (152, "frozen"), (50, "fixed_statistics")]
)
def test_random_weights_with_fixed_norms_keep_the_activation_scale(depth: int, norm: str) -> None:
    model = builder(f"resnet{depth}")(None, norm=norm)
    for feature in model.features(torch.randn(1, 3, 64, 64)).values():
        assert 0.02 < feature.std() < 50
