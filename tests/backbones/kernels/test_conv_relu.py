"""A convolution and what follows it in one pass, against the same one after the other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from backbones.kernels.conv_relu import _DTYPES, conv_relu

CHANNELS_LAST = torch.channels_last
FUSED = "mkldnn::_convolution_pointwise"
with_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here"
)
with_bf16 = pytest.mark.skipif(
    torch.bfloat16 not in _DTYPES, reason="oneDNN has no bfloat16 on this processor"
)


def one_by_one(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    add: Tensor | None = None,
) -> Tensor:
    y = F.conv2d(x, weight, bias, stride, padding)
    return (y if add is None else y + add.to(y.dtype)).relu()


def make_tensor(*shape: int, seed: int, layout: torch.memory_format | None = None) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values if layout is None else values.contiguous(memory_format=layout)


def with_gradients(
    run: Callable[..., Tensor], *tensors: Tensor | None, **keywords: Any
) -> list[Tensor]:
    """Return the result, and the gradients of all that is given."""
    leaves = [None if each is None else each.clone().requires_grad_() for each in tensors]
    x, weight, bias, add, factors = leaves
    assert factors is not None
    y = run(x, weight, bias, add=add, **keywords)
    wanted = [each for each in leaves[:4] if each is not None]
    return [y.detach(), *torch.autograd.grad((y.float() * factors).sum(), wanted)]


def names_of(run: Callable[[], object]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:  # else 2.11 warns
        run()
    return {each.key for each in record.key_averages()}


@pytest.mark.parametrize("layout", [CHANNELS_LAST, torch.contiguous_format])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(1, 1, 0), (1, 2, 0), (1, 1, 1), (3, 1, 1), (3, 2, 1), (7, 2, 3)],
)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_add", [True, False])
def test_is_the_three_in_a_row_with_all_gradients(
    layout: torch.memory_format,
    precision: str,
    kernel: int,
    stride: int,
    padding: int,
    with_bias: bool,
    with_add: bool,
) -> None:
    x = make_tensor(2, 16, 17, 18, seed=0, layout=layout)
    weight = make_tensor(32, 16, kernel, kernel, seed=1, layout=layout) / (4 * kernel)
    bias = make_tensor(32, seed=2) if with_bias else None
    keywords: dict[str, Any] = {"stride": (stride, stride), "padding": (padding, padding)}
    shape = F.conv2d(x, weight, **keywords).shape
    add = make_tensor(*shape, seed=3, layout=layout) if with_add else None
    # None where rounding could turn the sign: a gradient would be there or not.
    before = F.conv2d(x, weight, bias, **keywords) + (0 if add is None else add)
    factors = torch.linspace(-1, 1, before.numel()).view_as(before) * (before.abs() > 0.05)
    tensors = (x, weight, bias, add, factors)
    exact = with_gradients(one_by_one, *tensors, **keywords)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        ours = with_gradients(conv_relu, *tensors, **keywords)
        plain = with_gradients(one_by_one, *tensors, **keywords)
    assert ours[0].is_contiguous(memory_format=layout)
    for got, other, expected in zip(ours, plain, exact, strict=True):
        assert got.dtype == other.dtype
        if precision == "fp32":
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        else:
            error, others_error = (float((each - expected).norm()) for each in (got, other))
            assert error <= 1.2 * others_error


@with_onednn
@pytest.mark.usefixtures("fast_kernels")
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=with_bf16)])
@pytest.mark.parametrize("with_add", [True, False])
def test_a_cpu_makes_one_pass_over_the_map(with_add: bool, precision: str) -> None:
    x = make_tensor(1, 8, 6, 6, seed=0, layout=CHANNELS_LAST)
    add = make_tensor(1, 8, 6, 6, seed=1, layout=CHANNELS_LAST) if with_add else None
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        names = names_of(lambda: conv_relu(x, make_tensor(8, 8, 1, 1, seed=2), None, add=add))
    assert FUSED in names
    assert not names & {"aten::relu_", "aten::relu", "aten::add_", "aten::add"}


@with_onednn
@pytest.mark.usefixtures("fast_kernels")
def test_onednn_may_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x = make_tensor(1, 8, 6, 6, seed=0, layout=CHANNELS_LAST)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert FUSED not in names_of(lambda: conv_relu(x, make_tensor(8, 8, 1, 1, seed=2), None))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_types_are_mixed_under_autocast_alone(which: str) -> None:
    x = make_tensor(1, 8, 6, 6, seed=0, layout=CHANNELS_LAST)
    weight, bias = make_tensor(8, 8, 1, 1, seed=1), make_tensor(8, seed=2)
    if which == "weight":
        weight = weight.bfloat16()
    else:
        bias = bias.bfloat16()
    with pytest.raises(RuntimeError, match="type"):
        conv_relu(x, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv_relu(x, weight, bias).dtype == torch.bfloat16


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_training_sees_what_is_not_finite(
    value: float, precision: str, kernel: int, stride: int
) -> None:
    x = make_tensor(1, 8, 18, 18, seed=0)
    x[0, 3, 5, 7] = value
    x = x.contiguous(memory_format=CHANNELS_LAST)
    weight = make_tensor(8, 8, kernel, kernel, seed=1).requires_grad_()
    keywords: dict[str, Any] = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        y = conv_relu(x, weight, None, **keywords)
    (grad,) = torch.autograd.grad(y.float().sum(), weight)
    assert not grad.isfinite().all()


@pytest.mark.parametrize("name", ["float64", "float64 under autocast", "float16 autocast", "empty"])
def test_what_onednn_does_not_take_is_done_one_by_one(name: str) -> None:
    dtype = torch.float64 if "float64" in name else torch.float32
    x = make_tensor(0 if name == "empty" else 2, 8, 6, 6, seed=0, layout=CHANNELS_LAST).to(dtype)
    weight, bias = make_tensor(4, 8, 1, 1, seed=1).to(dtype), make_tensor(4, seed=2).to(dtype)
    add = make_tensor(len(x), 4, 6, 6, seed=3).to(dtype)
    to = torch.float16 if "float16" in name else torch.bfloat16
    with torch.autocast("cpu", to, enabled="autocast" in name):
        names = names_of(lambda: conv_relu(x, weight, bias, add=add))
        ours, plain = (f(x, weight, bias, add=add) for f in (conv_relu, one_by_one))
    assert FUSED not in names
    rtol = 1e-2 if ours.dtype == torch.float16 else 1e-5
    torch.testing.assert_close(ours, plain.to(ours.dtype), rtol=rtol, atol=1e-3 * rtol)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("trains", ["x", "weight", "bias", "add", ""])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_what_trains_alone(
    trains: str, kernel: int, stride: int, dtype: torch.dtype
) -> None:
    side = 18 // stride
    tensors: dict[str, Any] = {
        "x": make_tensor(2, 8, 18, 18, seed=0, layout=CHANNELS_LAST),
        "weight": make_tensor(4, 8, kernel, kernel, seed=1),
        "bias": make_tensor(4, seed=2),
        "add": make_tensor(2, 4, side, side, seed=3),
    }
    keywords: dict[str, Any] = {"stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
    grads = []
    for run in (conv_relu, one_by_one):
        leaves = {name: each.to(dtype) for name, each in tensors.items()}
        if trains:
            leaves[trains].requires_grad_()
        y: Tensor = run(**leaves, **keywords)
        assert y.requires_grad == bool(trains)
        if trains:
            y.square().sum().backward()
            grads.append(leaves[trains].grad)
    if trains and dtype == torch.float32:
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)
    elif trains:
        assert (grads[0] - grads[1]).norm() < 0.02 * grads[1].norm()


def test_the_reference_is_torchs_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESDET_KERNELS", "reference")
    x = make_tensor(1, 8, 6, 6, seed=0, layout=CHANNELS_LAST)
    weight = make_tensor(8, 8, 1, 1, seed=1)
    assert FUSED not in names_of(lambda: conv_relu(x, weight, None))
    torch.testing.assert_close(
        conv_relu(x, weight, None, add=x), one_by_one(x, weight, None, add=x), rtol=0, atol=0
    )


@pytest.mark.parametrize(("channels", "side"), [(8, 1), (1, 4)])
def test_maps_that_lie_in_memory_either_way(channels: int, side: int) -> None:
    x = make_tensor(2, 8, side, side, seed=0, layout=CHANNELS_LAST)
    add = make_tensor(2, channels, side, side, seed=1, layout=CHANNELS_LAST)
    weight = make_tensor(channels, 8, 1, 1, seed=2)
    torch.testing.assert_close(
        conv_relu(x, weight, None, add=add), one_by_one(x, weight, None, add=add)
    )


def test_compiles_without_a_graph_break() -> None:
    x = make_tensor(1, 8, 6, 6, seed=0, layout=CHANNELS_LAST)
    weight, bias = make_tensor(8, 8, 3, 3, seed=1), make_tensor(8, seed=2)
    compiled = torch.compile(conv_relu, backend="eager", fullgraph=True)
    ours, plain = (f(x, weight, bias, padding=(1, 1), add=x) for f in (compiled, one_by_one))
    torch.testing.assert_close(ours, plain)
