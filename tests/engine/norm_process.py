"""Program for test_sync_norm.py under torchrun: gradients and statistics of a batch norm net."""

import gc
import sys
import weakref

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import process_group
from engine.sync_norm import MaskedBatchNorm2d, synchronise_norms


def main(output: str) -> weakref.ref[dist.ProcessGroup] | None:
    """Train the net on this process's share of six images for one step, in float64.

    Returns:
        A weak reference to the process group, which should be freed by then; None on one process.
    """
    torch.set_num_threads(1)
    with process_group("cpu", timeout_s=60) as world:
        group = None if world.size == 1 else weakref.ref(dist.distributed_c10d._get_default_group())
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
        ).double()
        images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
        synchronise_norms(net, world)
        synced = [isinstance(each, MaskedBatchNorm2d) for each in net.modules()]
        assert sum(synced) == (0 if world.size == 1 else 2)
        wrapped = net if world.size == 1 else DistributedDataParallel(net)
        wrapped(images[world.rank :: world.size]).pow(3).mean().backward()
        result = {name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers())
        net.eval()
        if world.is_main:
            torch.save(result | {"evaluated": net(images).detach()}, output)
    return group


if __name__ == "__main__":
    group = main(*sys.argv[1:])
    gc.collect()
    # otherwise its threads may still work while Python shuts down, and abort the process
    assert group is None or group() is None
