"""Distributed training: process group, devices and collective operations.

Processes are started by torchrun. With a single process every function returns its input unchanged.
"""

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.errors import PeerError, UserError
from engine.memory import keep_freed_memory
from engine.rendezvous import join_job
from engine.text import one_line
from engine.watchdog import ProgressWatchdog

_NCCL_MARGIN_S = 60
"""Seconds that torch waits longer than our watchdog, so that the watchdog's line comes first."""


@dataclass(frozen=True)
class World:
    """The rank of this process (0..size-1), the number of processes, and this process's device.

    watchdog: ends this process if it waits for another one on a GPU for too long; None on a CPU,
    and with one process.
    """

    rank: int
    size: int
    device: torch.device
    watchdog: ProgressWatchdog | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the process that writes files and log lines."""
        return self.rank == 0

    def report_progress(self, what: str) -> None:
        """Tell the watchdog, if there is one, what was reached, such as `step 120`."""
        if self.watchdog is not None:
            self.watchdog.report(what)

    def unwatched(self) -> AbstractContextManager[None]:
        """Return a context in which the watchdog, if there is one, counts no time."""
        return nullcontext() if self.watchdog is None else self.watchdog.paused()


@contextmanager
def process_group(device: str | None = None, timeout_s: int = 1800) -> Iterator[World]:
    """Join the process group described by torchrun's environment variables; leave it at the end.

    From then on a process that computes on a CPU keeps the memory that it frees (engine.memory).

    Args:
        device: `cpu`, `cuda` or `cuda:N`; None takes `cuda` if available. With several processes
            each takes the GPU of its local rank.
        timeout_s: longest wait for the other processes, in seconds. After it the waiting call
            raises. A wait on a GPU cannot raise: after `timeout_s` without a call of
            `World.report_progress` the process ends with one line and the exit code of a PeerError.
            Without any such call torch ends it, a minute later. A note on each exception names the
            rank.

    Raises:
        UserError: the device does not exist.
        PeerError: another process ended or did not answer in time.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    own_device = pick_device(device, local_rank=int(os.environ.get("LOCAL_RANK", 0)), size=size)
    if own_device.type == "cpu":
        keep_freed_memory()
    else:
        torch.cuda.set_device(own_device)
    if size == 1:
        yield World(rank, size, own_device)
        return
    # Import this module before the group exists. Its functions have the current group as a default
    # argument, so they would keep the group alive forever. DistributedDataParallel imports it too.
    import_module("torch.distributed.nn")
    where = f"process {rank} of 0..{size - 1}"
    limit_s = timeout_s + (_NCCL_MARGIN_S if own_device.type == "cuda" else 0)
    with _watchdog(own_device, where, timeout_s=timeout_s) as watchdog:
        try:
            store, rank, size = join_job(timeout_s=limit_s)
            dist.init_process_group(
                # on GPUs gloo transfers pickled objects, so that results never pass through the GPU
                "gloo" if own_device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=store,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=limit_s),
                device_id=own_device if own_device.type == "cuda" else None,
            )
            yield World(rank, size, own_device, watchdog)
        except BaseException as error:
            # No destroy_process_group: it may wait for processes that are waiting for this one.
            if _is_peer_failure(error):
                raise PeerError(
                    f"{where}: another process ended or did not answer within {limit_s} s; its own "
                    f"error says why ({one_line(error)})"
                ) from error
            error.add_note(f"in {where}")
            raise
        dist.destroy_process_group()
    # DistributedDataParallel still references the group in a cycle that only the garbage collector
    # frees; then gloo's threads are joined. A gloo thread that is still working while Python shuts
    # down aborts the process, so collect at exit.
    atexit.register(gc.collect)


def _watchdog(
    device: torch.device, process: str, *, timeout_s: int
) -> AbstractContextManager[ProgressWatchdog | None]:
    """Return a watchdog on a GPU, as a context that closes it; None on a CPU, where gloo raises."""
    if device.type == "cpu":
        return nullcontext()
    return closing(ProgressWatchdog(process, timeout_s=timeout_s))


def _is_peer_failure(error: BaseException) -> bool:
    """Return whether gloo or NCCL raised `error`, as they do if a process is gone or silent."""
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and "gloo" in str(error).lower()
    )


def is_main_process() -> bool:
    """Return whether this process has rank 0, or was not started by torchrun.

    It reads torchrun's environment variables, so it works before `process_group` is entered.
    """
    return os.environ.get("RANK", "0") == "0"


def rank_and_size() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) outside `process_group`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean over processes, same shape, detached; `tensor` itself on one process."""
    size = rank_and_size()[1]
    if size == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / size


def any_over_ranks(flag: Tensor) -> Tensor:
    """Return the element-wise logical or of `flag` (bool, any shape) over processes."""
    if rank_and_size()[1] == 1:
        return flag
    highest = flag.to(torch.int32)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest.bool()


def gather_objects(item: Any) -> list[Any]:
    """Return every process's `item` (picklable) by rank on the main process, [] on the others."""
    rank, size = rank_and_size()
    if size == 1:
        return [item]
    items: list[Any] = [None] * size
    dist.gather_object(item, items if rank == 0 else None)
    return items if rank == 0 else []


def broadcast_object(item: Any) -> Any:
    """Return the main process's `item` (picklable) on every process."""
    if rank_and_size()[1] == 1:
        return item
    items = [item]
    dist.broadcast_object_list(items)
    return items[0]


def barrier() -> None:
    """Wait until every process has reached this call."""
    if rank_and_size()[1] > 1:
        dist.barrier()


def pick_device(name: str | None, *, local_rank: int = 0, size: int = 1) -> torch.device:
    """Return the device for `--device`; by default a GPU if there is one.

    Args:
        name: `cpu`, `cuda`, `cuda:N` or None.
        local_rank: index of this process on its machine.
        size: number of processes.

    Raises:
        UserError: the device does not exist.
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
        raise UserError(f"device: expected cuda with {size} processes (one GPU each), got {name}")
    index = local_rank if device.index is None else device.index
    if index >= count:
        raise UserError(
            f"device: expected one of the {count} GPUs of this machine, got cuda:{index}"
        )
    return torch.device("cuda", index)
