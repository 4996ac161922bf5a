"""Batch norm over the valid rows of a batch, and over the batches of all processes.

Synchronised over processes, N of them compute the same gradients as one with the whole batch.
B rows (images or RoIs) of this process, C channels, H x W cells, M: values per channel in the
statistics, H W for each valid row of all processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.distributed import World
from engine.schema import LoopConfig


def synchronise_norms(module: nn.Module, world: World) -> None:
    """Let every batch norm in `module`, in place, use the statistics of all processes.

    Parameters and buffers stay the same tensors with the same names. Does nothing on one process.
    Subclasses of BatchNorm2d other than `MaskedBatchNorm2d` stay as they are.
    """
    if world.size == 1:
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, MaskedBatchNorm2d):
                child.is_synchronised = True
            elif type(child) is nn.BatchNorm2d:  # subclasses may compute something else
                synced = (
                    nn.SyncBatchNorm.convert_sync_batchnorm(child)
                    if world.device.type == "cuda"
                    else MaskedBatchNorm2d.synchronised(child)
                )
                setattr(parent, name, synced)


def has_synchronised_norms(module: nn.Module) -> bool:
    """Return whether `synchronise_norms` has synchronised the batch norms of `module`."""
    return any(
        isinstance(each, nn.SyncBatchNorm)
        or (isinstance(each, MaskedBatchNorm2d) and each.is_synchronised)
        for each in module.modules()
    )


def accumulated_norms_note(module: nn.Module, loop: LoopConfig) -> str | None:
    """Return a log line if batch norms see parts of a batch, which changes what they compute."""
    kinds = (nn.BatchNorm2d, MaskedBatchNorm2d)
    if loop.accumulate == 1 or not any(type(each) in kinds for each in module.modules()):
        return None
    count = loop.batch_size // loop.accumulate
    return (
        f"loop.accumulate={loop.accumulate}: batch norm takes its statistics from "
        f"{'at most ' if not loop.sync_batch_norm else ''}{count} of {loop.batch_size} images"
    )


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with statistics over the valid rows alone; it can be synchronised.

    In plain operations, so on CPU and GPU, and without waiting for the device; torch's
    SyncBatchNorm needs a GPU. Equals BatchNorm2d on a batch of the valid rows.
    """

    is_synchronised = False
    """Whether statistics are over all processes."""

    @classmethod
    def synchronised(cls, norm: nn.BatchNorm2d) -> "MaskedBatchNorm2d":
        """Return a synchronised norm that shares the tensors and settings of `norm`."""
        synced = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        synced.is_synchronised = True
        synced.weight, synced.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(synced, name, buffer)
        return synced.train(norm.training)

    def forward(self, input: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise (B, C, H, W); same shape and dtype out, computed in float32 or better.

        Args:
            input: B may be 0. All rows are normalised, also those that are not valid.
            valid: (B,) bool, the rows that give the statistics; None: all. Not used in evaluation
                mode. If no row of any process is valid, the running statistics stay, and the norm
                only scales and shifts.
        """
        if not self.training or (valid is None and not self.is_synchronised):
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        if valid is None:
            valid = x.new_ones(len(x), dtype=torch.bool)
        count = valid.sum().to(x.dtype)[None] * (x.shape[2] * x.shape[3])
        # channel sums and count in one message: (C + 1,)
        totals = self._total(torch.cat([_sum_of_rows(x, valid), count]))
        count = totals[-1].detach()
        exists, count = count > 0, count.clamp(min=1)
        mean = totals[:-1] / count
        centred = x - mean[:, None, None]
        # Squares of centred values. E[x^2] - mean^2 would lose precision by cancellation.
        var = self._total(_sum_of_rows(centred.square(), valid)) / count
        self._update_running_statistics(mean.detach(), var.detach(), count, exists)
        scale = self.weight * torch.rsqrt(var.where(exists, 1.0) + self.eps)
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(input.dtype)

    def _total(self, values: Tensor) -> Tensor:
        """Return the sum over processes if synchronised, otherwise the values of this one."""
        if not self.is_synchronised:
            return values
        total: Tensor = _SumOverProcesses.apply(values)
        return total

    @torch.no_grad()
    def _update_running_statistics(
        self, mean: Tensor, var: Tensor, count: Tensor, exists: Tensor
    ) -> None:
        """Update running mean and variance like BatchNorm2d, with the unbiased variance.

        mean, var: (C,), var biased. count: 0-dim, M, at least 1. exists: 0-dim bool, whether there
        was any value; without one only the counter of batches changes.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        # Bessel's correction: the running variance is unbiased, the one used above is not. A single
        # value has variance 0.
        unbiased = var * count / (count - 1).clamp(min=1)
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(new.where(exists, running), self.momentum)


def _sum_of_rows(x: Tensor, valid: Tensor) -> Tensor:
    """Return the channel sums (C,) of the valid rows of (B, C, H, W)."""
    return x.sum((2, 3)).where(valid[:, None], 0.0).sum(0)


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
