"""Program for test_sync_norm.py under torchrun: gradients and statistics of a batch norm net."""

import gc
import sys
import weakref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detection.models.region_convs import RegionConvs
from engine.distributed import World, process_group
from engine.sync_norm import MaskedBatchNorm2d, has_synchronised_norms, synchronise_norms


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
        assert has_synchronised_norms(net) == (world.size > 1)
        wrapped = net if world.size == 1 else DistributedDataParallel(net)
        wrapped(images[world.rank :: world.size]).pow(3).mean().backward()
        result = {name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers())
        result |= some_rows(images, world)
        net.eval()
        if world.is_main:
            torch.save(result | {"evaluated": net(images).detach()}, output)
    return group


# which images are valid; with two processes, the second has every other one
VALID = {"unequal": [1, 1, 0, 1, 1, 0], "none on one": [1, 0, 1, 0, 0, 0], "none": [0] * 6}


def some_rows(images: Tensor, world: World) -> dict[str, Tensor]:
    """Return gradients and statistics of a norm on the valid rows among this process's share."""
    result: dict[str, Tensor] = {}
    for case, flags in VALID.items():
        torch.manual_seed(1)
        net = RegionConvs(3, num_convs=2, channels=4, norm="batch").double()
        synchronise_norms(net, world)
        assert has_synchronised_norms(net) == (world.size > 1)
        wrapped = net if world.size == 1 else DistributedDataParallel(net)
        share = slice(world.rank, None, world.size)
        valid = torch.tensor(flags, dtype=torch.bool)[share]
        output = wrapped(images[share], valid)
        # the same divisor on each process: DDP averages their gradients
        (output.pow(3).mean((1, 2, 3)) * valid).mean().backward()
        tensors = {name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers())
        for name, tensor in tensors.items():
            assert tensor is not None
            result[f"{case} {name}"] = tensor
    return result


if __name__ == "__main__":
    group = main(*sys.argv[1:])
    gc.collect()
    # otherwise its threads may still work while Python shuts down, and abort the process
    assert group is None or group() is None
