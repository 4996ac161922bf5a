from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.norm import FrozenBatchNorm2d, NormKind, conv_norm, conv_norm_relu, make_norm


def trained_batch_norm(channels: int, eps: float = 1e-5) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=eps)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 2.0)
    return norm.eval()


@pytest.mark.parametrize("eps", [1e-5, 1e-2], ids=["default", "large"])
def test_frozen_equals_batch_norm_in_evaluation_also_in_train_mode(eps: float) -> None:
    batch = trained_batch_norm(6, eps)
    frozen = FrozenBatchNorm2d(6, eps=eps).train()
    frozen.load_state_dict(batch.state_dict())
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(frozen(x), batch(x))
    torch.testing.assert_close(frozen.running_mean, batch.running_mean)


def test_frozen_gives_batch_norms_gradient_and_has_no_parameters() -> None:
    batch = trained_batch_norm(4)
    frozen = make_norm("frozen", 4)
    frozen.load_state_dict(batch.state_dict())
    gradients = []
    for norm in (batch, frozen):
        x = torch.linspace(-1, 1, 4 * 9).view(1, 4, 3, 3).requires_grad_()
        norm(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    assert list(frozen.parameters()) == []


def test_frozen_keeps_nothing_of_its_input_for_backward() -> None:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    norm = FrozenBatchNorm2d(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm(torch.randn(2, 3, 8, 8, requires_grad=True))
    assert max(tensor.numel() for tensor in saved) == 3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_frozen_keeps_dtype_and_layout_under_autocast(layout: torch.memory_format) -> None:
    batch = trained_batch_norm(8)
    frozen = FrozenBatchNorm2d(8)
    frozen.load_state_dict(batch.state_dict())
    x = torch.randn(2, 8, 4, 4).to(torch.bfloat16).contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        y = frozen(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y.float(), batch(x.float()), rtol=0.02, atol=0.03)


def test_fixed_statistics_are_those_of_evaluation_and_its_weights_train() -> None:
    batch = trained_batch_norm(4)
    norm = make_norm("fixed_statistics", 4).train()
    norm.load_state_dict(batch.state_dict())
    conv = nn.Conv2d(3, 4, 3, bias=False)
    x = torch.randn(2, 3, 5, 5)
    results = []
    for y, used in (
        (batch(conv(x)), batch),
        (norm(conv(x)), norm),
        (conv_norm(x, conv, norm), norm),
    ):
        leaves = [conv.weight, *used.parameters()]
        results.append((y, *torch.autograd.grad(y.pow(3).sum(), leaves)))
    assert len(results[0]) == len(results[1]) == 4
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[2], results[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.state_dict(), batch.state_dict(), rtol=0, atol=0)
    assert not norm.training


@pytest.mark.parametrize("kind", ["batch", "frozen", "fixed_statistics", "group"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)  # the latter fused
def test_conv_norm_is_the_two_in_a_row_and_trains_all_that_trains(
    kind: NormKind, training: bool, dtype: torch.dtype
) -> None:
    norm = make_norm(kind, 6).to(dtype).train(training)
    norm.load_state_dict(trained_batch_norm(6).state_dict(), strict=kind != "group")
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False).to(dtype)
    add = torch.linspace(-2, 2, 2 * 6 * 12, dtype=dtype).view(2, 6, 3, 4).requires_grad_()
    for reference, run in (
        (lambda x: norm(conv(x)), lambda x: conv_norm(x, conv, norm)),
        (lambda x: norm(conv(x)).relu(), lambda x: conv_norm_relu(x, conv, norm)),
        (
            lambda x: (norm(conv(x)) + add).relu(),
            lambda x: conv_norm_relu(x, conv, norm, add=add),
        ),
    ):
        results = []
        for each in (reference, run):
            x = torch.linspace(-1, 1, 2 * 4 * 35, dtype=dtype).view(2, 4, 5, 7)
            x = x.contiguous(memory_format=torch.channels_last)
            inputs = [x.requires_grad_(), add, conv.weight, *norm.parameters()]
            y = each(x)
            grads = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
            results.append((y, *grads))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "frozen", "fixed_statistics"])
@pytest.mark.parametrize(
    "setting",
    [
        {"bias": True},
        {"dilation": 2},
        {"groups": 2},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=["bias", "dilation", "groups", "padding as large as needed", "reflected"],
)
def test_conv_norm_drops_nothing_of_the_convolution(
    kind: NormKind, setting: dict[str, Any]
) -> None:
    conv = nn.Conv2d(4, 6, 3, **{"bias": False, **setting})
    x = torch.randn(2, 4, 8, 8)
    norm = make_norm(kind, 6).eval()
    norm.load_state_dict(trained_batch_norm(6).state_dict())
    torch.testing.assert_close(conv_norm(x, conv, norm), norm(conv(x)))
    torch.testing.assert_close(conv_norm_relu(x, conv, norm), norm(conv(x)).relu())


@pytest.mark.parametrize("kind", ["batch", "frozen", "fixed_statistics"])
@pytest.mark.parametrize("which", ["conv", "norm"])
def test_forward_hooks_see_what_the_layer_gives(kind: NormKind, which: str) -> None:
    conv, norm = nn.Conv2d(4, 6, 3, bias=False), make_norm(kind, 6).eval()
    norm.load_state_dict(trained_batch_norm(6).state_dict())
    seen: list[Tensor] = []
    layer = {"conv": conv, "norm": norm}[which]
    x = torch.randn(2, 4, 8, 8)
    expected = {"conv": conv(x), "norm": norm(conv(x))}[which]
    layer.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    conv_norm(x, conv, norm)
    conv_norm_relu(x, conv, norm)
    torch.testing.assert_close(seen, [expected, expected])


@pytest.mark.parametrize("setting", ["affine", "track_running_stats"])
def test_a_norm_that_lacks_something_is_run_by_itself(setting: str) -> None:
    conv, norm = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, **{setting: False}).eval()
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(conv_norm(x, conv, norm), norm(conv(x)))


@pytest.mark.parametrize("kind", ["batch", "frozen", "fixed_statistics"])
def test_what_a_hook_does_before_the_convolution_counts(kind: NormKind) -> None:
    conv, norm = nn.Conv2d(4, 6, 3, bias=False), make_norm(kind, 6).eval()
    x = torch.randn(2, 4, 8, 8)
    expected = norm(conv(2 * x))
    conv.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    torch.testing.assert_close(conv_norm(x, conv, norm), expected)


def test_conv_norm_under_autocast_rounds_no_more_than_the_two_in_a_row() -> None:
    norm, conv = make_norm("frozen", 64), nn.Conv2d(32, 64, 1, bias=False)
    norm.load_state_dict(trained_batch_norm(64).state_dict())
    x = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        exact = norm(conv(x))
        with torch.autocast("cpu", torch.bfloat16):
            folded, apart = conv_norm(x, conv, norm), norm(conv(x))
    assert folded.dtype == torch.bfloat16
    assert (folded - exact).square().mean() <= 1.1 * (apart - exact).square().mean()


def test_frozen_compiles_without_a_graph_break() -> None:
    norm = FrozenBatchNorm2d(3)
    x = torch.randn(1, 3, 2, 2)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), norm(x))


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (32, 32), (48, 24), (16, 16), (7, 7), (37, 1)]
)
def test_group_norm_has_the_most_groups_that_divide(channels: int, groups: int) -> None:
    norm = make_norm("group", channels, eps=1e-3)
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.eps) == (groups, 1e-3)


def test_group_norm_does_not_depend_on_other_images() -> None:
    norm = make_norm("group", 8)
    x = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(norm(x)[:1], norm(x[:1]))


def test_batch_is_torchs() -> None:
    norm = make_norm("batch", 8, eps=1e-3)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.eps == 1e-3


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_group_norm_is_torchs(layout: torch.memory_format) -> None:
    ours, theirs = make_norm("group", 64), nn.GroupNorm(32, 64)
    x = torch.randn(2, 64, 5, 7).contiguous(memory_format=layout)
    results = []
    for norm in (ours, theirs):
        assert isinstance(norm, nn.GroupNorm)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, 64))
            norm.bias.copy_(torch.linspace(-1, 1, 64))
        inputs = x.clone(memory_format=torch.preserve_format).requires_grad_()
        outputs = norm(inputs)
        (outputs * torch.linspace(-1, 3, outputs.numel()).view_as(outputs)).sum().backward()
        results.append((outputs, inputs.grad, norm.weight.grad, norm.bias.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("kernels")
def test_group_norm_gradient_in_float64() -> None:
    norm = make_norm("group", 6).double()
    assert isinstance(norm, nn.GroupNorm)
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64, requires_grad=True)

    def call(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parameters = {"weight": weight, "bias": bias}
        result: Tensor = torch.func.functional_call(norm, parameters, (inputs,))
        return result

    assert torch.autograd.gradcheck(call, (x, norm.weight, norm.bias))
