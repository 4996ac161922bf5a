"""Global average pooling against torch's mean."""

import pytest
import torch

from backbones.kernels.pooling import mean_over_cells


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(7, 7), (3, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_is_the_mean_with_its_gradient(
    count: int, size: tuple[int, int], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    x = torch.randn(count, 8, *size).to(dtype).contiguous(memory_format=layout)
    factors = torch.linspace(-1, 1, count * 8).view(count, 8).to(dtype)
    results = []
    for run in (mean_over_cells, lambda each: each.mean((2, 3))):
        leaf = x.clone().requires_grad_()
        means = run(leaf)
        results.append((means, *torch.autograd.grad((means * factors).sum(), leaf)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.usefixtures("fast_kernels")  # torch's own mean does not keep it
def test_a_gradient_behind_it_keeps_the_layout_of_the_map() -> None:
    x = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    (grad,) = torch.autograd.grad(mean_over_cells(x.relu()).square().sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("kernels")
def test_many_cells_of_one_value_give_that_value() -> None:
    x = torch.full((1, 2, 64, 64), 1.0078125, dtype=torch.bfloat16)
    torch.testing.assert_close(mean_over_cells(x), x[:, :, 0, 0], rtol=0, atol=0)


def test_compiles_without_a_graph_break() -> None:
    x = torch.randn(2, 8, 3, 3)
    compiled = torch.compile(mean_over_cells, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), x.mean((2, 3)))
