"""Synchronised batch norm: statistics over the batches of all processes, on CPU and GPU.

So N processes compute the same gradients as one process with the whole batch.
B images of this process, C channels, H x W cells, M = B H W summed over all processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.distributed import World


def synchronise_norms(module: nn.Module, world: World) -> None:
    """Replace every batch norm in `module`, in place, by one that uses all processes' statistics.

    Parameters and buffers stay the same tensors with the same names. Does nothing on one process.
    """
    if world.size == 1:
        return
    if world.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:  # not subclasses, which may compute something else
                setattr(parent, name, GlobalBatchNorm2d.over(child))


def has_synchronised_norms(module: nn.Module) -> bool:
    """Return whether `synchronise_norms` has replaced the batch norms of `module`."""
    kinds = (nn.SyncBatchNorm, GlobalBatchNorm2d)
    return any(isinstance(each, kinds) for each in module.modules())


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over all processes in plain operations; torch's SyncBatchNorm needs a GPU."""

    @classmethod
    def over(cls, norm: nn.BatchNorm2d) -> "GlobalBatchNorm2d":
        """Return a synchronised norm that shares the tensors and settings of `norm`."""
        synced = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        synced.weight, synced.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(synced, name, buffer)
        return synced.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W); same shape and dtype out, computed in float32 or better."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.new_full((1,), x.numel() // x.shape[1])
        # channel sums and count in one message: (C + 1,)
        totals = _SumOverProcesses.apply(torch.cat([x.sum((0, 2, 3)), count]))
        mean = totals[:-1] / totals[-1]
        centred = x - mean[:, None, None]
        # Squares of centred values. E[x^2] - mean^2 would lose precision by cancellation.
        var = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / totals[-1]
        self._update_running_statistics(mean.detach(), var.detach(), totals[-1].detach())
        scale = self.weight * torch.rsqrt(var + self.eps)
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update running mean and variance like BatchNorm2d, with the unbiased variance.

        mean, var: (C,), var biased. count: 0-dim, M.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        # Bessel's correction: the running variance is unbiased, the one used above is not
        self.running_var.lerp_(var * count / (count - 1), self.momentum)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes. Its backward sums the gradients of all processes' losses."""

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
