"""Linear layers by oneDNN against torch's."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from backbones.kernels.linear import Linear, linear

NAME = "mkldnn::_linear_pointwise"


def names_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:  # else 2.11 warns
        linear(x, weight, bias)
    return {each.key for each in record.key_averages()}


def make_tensors(
    *shape: int, with_bias: bool = True, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight = torch.randn(*shape, 12, dtype=dtype), torch.randn(7, 12, dtype=dtype)
    return x, weight, torch.randn(7, dtype=dtype) if with_bias else None


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", [(5,), (), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_is_torchs_with_all_gradients(
    dtype: torch.dtype, shape: tuple[int, ...], with_bias: bool
) -> None:
    results = []
    tensors = make_tensors(*shape, with_bias=with_bias, dtype=dtype)
    for run in (linear, F.linear):
        x, weight, bias = (None if t is None else t.clone().requires_grad_() for t in tensors)
        y = run(x, weight, bias)  # type: ignore[arg-type]
        wanted = [each for each in (x, weight, bias) if each is not None]
        results.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("trains", ["x", "weight", "bias", ""])
def test_gradient_of_what_trains_alone(trains: str) -> None:
    x, weight, bias = make_tensors(5, dtype=torch.float32)
    leaves: dict[str, Any] = {"x": x, "weight": weight, "bias": bias}
    if trains:
        leaves[trains].requires_grad_()
    y = linear(**leaves)
    assert y.requires_grad == bool(trains)
    if trains:
        expected = torch.autograd.grad(F.linear(x, weight, bias).square().sum(), leaves[trains])
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), leaves[trains]), expected)


def test_rows_that_do_not_lie_one_after_the_other() -> None:
    x, weight, bias = make_tensors(5, dtype=torch.float32)
    turned = x.T.contiguous().T
    torch.testing.assert_close(linear(turned, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, weight.T.contiguous().T, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("kind", ["repeated", "every second"])
def test_gradients_of_rows_that_do_not_lie_one_after_the_other(kind: str) -> None:
    _, weight, bias = make_tensors(5, dtype=torch.float32)
    x = torch.randn(1, 12).expand(5, 12) if kind == "repeated" else torch.randn(10, 24)[::2, ::2]
    grads = []
    for run in (linear, F.linear):
        leaf = weight.clone().requires_grad_()
        grads.append(torch.autograd.grad(run(x, leaf, bias).square().sum(), leaf))
    torch.testing.assert_close(grads[0], grads[1])


def test_a_cpu_in_float32_goes_by_onednn_with_fast_kernels_alone(kernels: str) -> None:
    called = NAME in names_of(*make_tensors(5, dtype=torch.float32))
    assert called == (kernels == "fast" and torch.backends.mkldnn.is_available())


@pytest.mark.usefixtures("fast_kernels")
@pytest.mark.parametrize("name", ["float64", "empty", "autocast"])
def test_what_onednn_is_not_asked_for_is_torchs(name: str) -> None:
    dtype = torch.float64 if name == "float64" else torch.float32
    tensors = make_tensors(0 if name == "empty" else 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"):
        assert NAME not in names_of(*tensors)
        assert linear(*tensors).dtype == F.linear(*tensors).dtype


def test_the_module_has_the_keys_and_values_of_torchs() -> None:
    theirs, ours = torch.nn.Linear(12, 7), Linear(12, 7)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(ours(x), theirs(x))


def test_compiles_without_a_graph_break() -> None:
    tensors = make_tensors(5, dtype=torch.float32)
    compiled = torch.compile(linear, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), F.linear(*tensors))
