"""One process or many, started by torchrun. On one process everything here does nothing."""

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.errors import PeerError, UserError
from engine.memory import keep_freed_memory


@dataclass(frozen=True)
class World:
    """This process among all: `rank` in 0..size-1, and the device that it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and lines."""
        return self.rank == 0


@contextmanager
def world(device: str | None = None, timeout_s: int = 1800) -> Iterator[World]:
    """Join the processes that torchrun started (its environment variables), and leave at the end.

    From then on a process that computes on a CPU keeps the memory that it frees (engine.memory).

    Args:
        device: `cpu`, `cuda` or `cuda:N`; none takes `cuda` when there is one. With several
            processes each takes the GPU of its local rank.
        timeout_s: longest wait for the other processes, seconds. Past it the waiting call raises
            (NCCL: ends the process). A note on each exception names the rank.

    Raises:
        UserError: a device that is not there.
        PeerError: another process ended or did not answer in time.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    own = pick_device(device, local_rank=int(os.environ.get("LOCAL_RANK", 0)), size=size)
    if own.type == "cpu":
        keep_freed_memory()
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if size == 1:
        yield World(rank, size, own)
        return
    # Its functions' defaults are the group that there is when it is imported, which they would hold
    # for ever. DistributedDataParallel imports it.
    import_module("torch.distributed.nn")
    where = f"process {rank} of 0..{size - 1}"
    try:
        dist.init_process_group(
            # on GPUs gloo carries pickled objects, so that results never pass through the GPU
            "gloo" if own.type == "cpu" else "cpu:gloo,cuda:nccl",
            timeout=timedelta(seconds=timeout_s),
            device_id=own if own.type == "cuda" else None,
        )
        yield World(rank, size, own)
    except BaseException as error:
        # No goodbye: it may wait for processes that are themselves waiting for this one.
        if _is_of_peers(error):
            raise PeerError(
                f"{where}: another process ended, or did not answer within {timeout_s} s; its own "
                f"error says why ({' '.join(str(error).split())})"
            ) from error
        error.add_note(f"in {where}")
        raise
    dist.destroy_process_group()
    # DistributedDataParallel still holds the group, and is freed by the garbage collector alone.
    # gloo's threads are joined then. One that ends its last work while Python shuts down aborts.
    atexit.register(gc.collect)


def _is_of_peers(error: BaseException) -> bool:
    """Whether gloo or NCCL raised it, which happens where a process is gone or silent."""
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and "gloo" in str(error).lower()
    )


def is_main_process() -> bool:
    """Return whether torchrun started this process as the first, or did not start it.

    Its environment variables tell before `world` is entered.
    """
    return os.environ.get("RANK", "0") == "0"


def current() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) outside `world`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean over processes, any shape, detached; `tensor` itself on one process."""
    size = current()[1]
    if size == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / size


def any_over_ranks(flag: Tensor) -> Tensor:
    """Return where the bool `flag` is set on some process, any shape; itself on one process."""
    if current()[1] == 1:
        return flag
    highest = flag.to(torch.int32)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest.bool()


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the main one's buffers, such as moving statistics of batch norm.

    Where batch norm is not synchronised each process has its own. Those of the main one count: they
    are saved, DistributedDataParallel hands them on at the next step, and so they are evaluated.
    """
    if current()[1] > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def gather_objects(item: Any) -> list[Any]:
    """Return every process's `item` (picklable) by rank on the main process, [] on the others."""
    rank, size = current()
    if size == 1:
        return [item]
    items: list[Any] = [None] * size
    dist.gather_object(item, items if rank == 0 else None)
    return items if rank == 0 else []


def broadcast_object(item: Any) -> Any:
    """Return the main process's `item` (picklable) on every process."""
    if current()[1] == 1:
        return item
    items = [item]
    dist.broadcast_object_list(items)
    return items[0]


def barrier() -> None:
    """Wait until every process is here."""
    if current()[1] > 1:
        dist.barrier()


def pick_device(name: str | None, *, local_rank: int = 0, size: int = 1) -> torch.device:
    """Return the device that `--device` names, or a GPU when there is one.

    Args:
        name: `cpu`, `cuda`, `cuda:N` or None.
        local_rank: place of this process among those of its machine.
        size: number of processes.

    Raises:
        UserError: a device that is not there.
    """
    count = torch.cuda.device_count()
    try:
        device = torch.device(name or ("cuda" if count else "cpu"))
    except RuntimeError as error:
        raise UserError(f"device: expected cpu, cuda or cuda:N, got {name}") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"device: expected cpu, cuda or cuda:N, got {name}")
    if size > 1 and device.index is not None:
        raise UserError(f"device: expected cuda with {size} processes (each its own), got {name}")
    index = local_rank if device.index is None else device.index
    if index >= count:
        raise UserError(f"device: process needs cuda:{index}, but this machine has {count} GPUs")
    return torch.device("cuda", index)
