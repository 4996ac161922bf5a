import torch

from detection.ops.gradients import scale_gradient


def test_scale_gradient() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert scale_gradient(x, 1.0) is x
    assert torch.equal(scale_gradient(x, 0.25), x)
    (gradient,) = torch.autograd.grad(scale_gradient(x, 0.25).pow(2).sum(), x)
    torch.testing.assert_close(gradient, x.detach() / 2)
