"""Batch norm over the batches of all processes, so that N processes give the gradients of one.

B images of this process, C channels, H x W cells, M = B H W over all processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.distributed import World


def synchronise_norms(module: nn.Module, world: World) -> None:
    """Let every batch norm in `module` take its statistics over all processes, in place.

    Parameters and buffers stay the same tensors under the same names. On one process nothing
    changes.
    """
    if world.size == 1:
        return
    if world.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, GlobalBatchNorm2d.over(child))


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over all processes, in plain operations: torch's SyncBatchNorm wants a GPU."""

    @classmethod
    def over(cls, norm: nn.BatchNorm2d) -> "GlobalBatchNorm2d":
        """Return a norm with the tensors and settings of `norm`."""
        synced = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        synced.weight, synced.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(synced, name, buffer)
        return synced.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape and type; in float32 at least."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.new_full((1,), x.numel() // x.shape[1])
        totals = _SumOverProcesses.apply(torch.cat([x.sum((0, 2, 3)), count]))
        mean = totals[:-1] / totals[-1]
        centred = x - mean[:, None, None]
        # squares of centred values: those of the values themselves would cancel
        var = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / totals[-1]
        self._remember(mean.detach(), var.detach(), totals[-1].detach())
        scale = self.weight * torch.rsqrt(var + self.eps)
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics as BatchNorm2d does: towards the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / (count - 1), self.momentum)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes; the gradient of the sum of all their losses goes back."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
