"""Normalisation layers (batch, fixed batch, group), and convolutions with a folded fixed norm.

B images, C channels, H x W cells.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.kernels.conv_relu import add_relu, conv_relu
from backbones.kernels.group_norm import group_norm
from engine.sync_norm import MaskedBatchNorm2d

NormKind = Literal["batch", "frozen", "fixed_statistics", "group"]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and fixed affine parameters: nothing in it is trained.

    State dict keys are those of BatchNorm2d, so that each loads the other's weights.
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
        scale, shift = _scale_and_shift(self)
        # x * scale + shift in one kernel. It saves only `scale` for the backward pass, while
        # F.batch_norm would save all of x.
        return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))

    def extra_repr(self) -> str:
        """Return the arguments of the constructor."""
        return f"{self.weight.numel()}, eps={self.eps}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # BatchNorm2d's counter, used only to update statistics
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FixedStatisticsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its stored statistics; weight and bias are trained.

    As in mmdetection with `norm_eval=True` and `requires_grad=True`.
    """

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, in which batch norm uses the stored statistics."""
        return super().train(False)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that calls our `group_norm`; the state dict is the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape and dtype."""
        return group_norm(x, self.num_groups, self.weight, self.bias, eps=self.eps)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return `values` (C,) as (1, C, 1, 1) in the dtype of `x`, to broadcast over a map."""
    return values.to(x.dtype).view(1, -1, 1, 1)


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """Return norm(conv(x)). A fixed norm is folded into the convolution, which still trains.

    Folding saves one pass over the map forward and one backward: see benchmark.py train. Fixed
    norms are frozen batch norm, and batch norm in evaluation mode, whose weight and bias may train.
    """
    folded = _folded(conv, norm)
    if folded is None:
        normed: Tensor = norm(conv(x))
        return normed
    return F.conv2d(x, *folded, conv.stride, conv.padding)


def conv_norm_relu(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.Module,
    *,
    add: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Return relu(norm(conv(x)) + add): see `conv_norm` and `conv_relu`.

    valid: (B,) bool, the rows that give a `MaskedBatchNorm2d` its statistics; None: all.
    """
    folded = _folded(conv, norm)
    if folded is None:
        y = conv(x)
        return add_relu(norm(y, valid) if isinstance(norm, MaskedBatchNorm2d) else norm(y), add)
    assert not isinstance(conv.padding, str), "folded a convolution with padding given by name"
    return conv_relu(x, *folded, stride=conv.stride, padding=conv.padding, add=add)


def conv_norm_of_pooled(
    x: Tensor, conv: nn.Conv2d, norm: nn.Module, *, pool: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Return norm(conv(pool(x, 1))) for a 1x1 convolution and a linear `pool`.

    The two commute, so the convolution runs once on the map instead of on every pooled region.

    Args:
        x: (B, C, H, W).
        conv: 1x1, without bias, unless `fold_norms` gave it one; its hooks are not called.
        norm: the norm after the convolution.
        pool: takes a map (B, C', H, W) and a stride, and returns a new tensor (M, C', h, w), linear
            in the map: every stride-th cell along each side of the result at stride 1.
    """
    assert conv.kernel_size == (1, 1), f"expected a 1x1 convolution, got {conv.kernel_size}"
    folded = _folded(conv, norm)
    if folded is None:
        assert conv.bias is None, "expected a convolution without bias"
        normed: Tensor = norm(pool(F.conv2d(x, conv.weight), conv.stride[0]))
        return normed
    weight, shift = folded
    pooled = pool(F.conv2d(x, weight), conv.stride[0])
    # The shift is added after pooling: samples outside the map count as 0 and would lose it. Adding
    # in place saves 3 % of R101-C4's prediction in float32. Not with gradients, because autograd
    # forbids writing into the result of a custom function.
    shift = _per_channel(shift, pooled)
    return pooled + shift if torch.is_grad_enabled() else pooled.add_(shift)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return weights and bias of one convolution that equals `conv` followed by `norm`.

    None if the norm depends on the map or has no weights, if the convolution has a bias, dilation,
    groups or a padding other than zeros, or if one of the two has a forward hook. After
    `fold_norms` the norm is an identity, and the convolution has the bias.
    """
    if isinstance(norm, nn.Identity) and conv.bias is not None and not _has_forward_hooks(conv):
        return conv.weight, conv.bias
    plain = conv.bias is None and conv.dilation == (1, 1) and conv.groups == 1
    padded = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    if not plain or not padded or any(_has_forward_hooks(each) for each in (conv, norm)):
        return None
    if not isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d):
        return None
    if norm.running_var is None or norm.weight is None:
        return None
    if isinstance(norm, nn.BatchNorm2d) and norm.training:
        return None
    scale, shift = _scale_and_shift(norm)
    dtype = conv.weight.dtype
    # scale * (weight * x) + shift = (scale * weight) * x + shift; one scale per output channel
    return (conv.weight * scale.view(-1, 1, 1, 1)).to(dtype), shift.to(dtype)


def fold_norms(network: nn.Module) -> None:
    """Fold each fixed norm into the convolution before it, in place, for prediction alone.

    `conv_norm` folds at each call, because in training the weights change. A norm is fixed if it is
    frozen or in evaluation mode; an identity takes its place, and the convolution gets a bias.

    Args:
        network: among the children of each of its modules, a norm that directly follows a
            convolution is applied to that convolution's output; this is not checked.
    """
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (_, conv), (name, norm) in pairwise(children):
            folded = _folded(conv, norm) if isinstance(conv, nn.Conv2d) else None
            if folded is None:
                continue
            conv.weight, conv.bias = (nn.Parameter(each, requires_grad=False) for each in folded)
            setattr(parent, name, nn.Identity())


def _has_forward_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _scale_and_shift(norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand of each channel in a fixed batch norm, (C,) each.

    They are float32, or float64 if the norm is.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wide = torch.promote_types(norm.running_var.dtype, torch.float32)
    # weight * (x - mean) / sqrt(var + eps) + bias = x * scale + (bias - mean * scale)
    scale = norm.weight.to(wide) * torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    return scale, norm.bias.to(wide) - norm.running_mean.to(wide) * scale


def make_norm(kind: NormKind, channels: int, *, eps: float = 1e-5) -> nn.Module:
    """Build a norm layer. "group" has the most groups, up to 32, that divide `channels`."""
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels, eps=eps)
        case "frozen":
            return FrozenBatchNorm2d(channels, eps=eps)
        case "fixed_statistics":
            return FixedStatisticsBatchNorm2d(channels, eps=eps)
        case "group":
            groups = next(g for g in range(32, 0, -1) if channels % g == 0)
            return GroupNorm(groups, channels, eps=eps)
