"""Normalisation layers, and the choice among them.

B images, C channels, H x W cells.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

NormKind = Literal["batch", "frozen", "group"]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine are fixed: nothing in it trains or follows the data.

    State dict keys are BatchNorm2d's, so that weights pass between the two.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape and dtype."""
        scale = self.weight.float() * torch.rsqrt(self.running_var.float() + self.eps)
        shift = self.bias.float() - self.running_mean.float() * scale
        # One kernel, and backward keeps `scale` alone, where F.batch_norm would keep all of x.
        return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))

    def extra_repr(self) -> str:
        """Return the arguments of the constructor."""
        return f"{self.weight.numel()}, eps={self.eps}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # only moving statistics need it
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(1, -1, 1, 1)


def make_norm(kind: NormKind, channels: int, *, eps: float = 1e-5) -> nn.Module:
    """Build a norm layer. "group" has 32 groups, or the largest divisor of `channels` below."""
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels, eps=eps)
        case "frozen":
            return FrozenBatchNorm2d(channels, eps=eps)
        case "group":
            groups = next(g for g in range(32, 0, -1) if channels % g == 0)
            return nn.GroupNorm(groups, channels, eps=eps)
