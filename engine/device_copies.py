"""Copies of batches to a GPU in a background thread, while the main thread launches a step."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

from engine.structures import tensors_of

Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCHES_AHEAD = 1
"""Batches that are copied before they are asked for. One is enough: its copy starts before the
step on the batch before it, and has the time of that whole step."""


def copy_of_array(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return a small array as a tensor on `device`; the host does not wait for the copy."""
    values = torch.from_numpy(array)
    if device.type == "cuda":  # a copy of memory that is not pinned may wait
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def copied_ahead(
    batches: Iterator[Item], copy: Callable[[Item], Item], *, device: torch.device
) -> Generator[Item, None, None]:
    """Yield copy(batch) for each batch, in order; the copies run on a CUDA stream of their own.

    The current stream waits for the copy before it uses a batch. The caller's thread waits for no
    copy; the thread that copies may, where a batch is decoded on the way.

    Args:
        batches: dataclasses of tensors on the CPU; closed as in `ahead`.
        copy: pins the tensors and copies them to `device` without waiting; called in a thread.
        device: the GPU.
    """
    stream = torch.cuda.Stream(device)

    def copy_on_stream(batch: Item) -> tuple[Item, torch.cuda.Event]:
        torch.cuda.set_device(stream.device)  # for this thread; a new one is on GPU 0
        with torch.cuda.stream(stream):
            return copy(batch), stream.record_event()

    for copied, arrived in ahead(batches, copy_on_stream, depth=_BATCHES_AHEAD):
        user = torch.cuda.current_stream(stream.device)
        user.wait_event(arrived)
        # The memory belongs to the copies' stream: without this, a later copy could overwrite it
        # when Python has freed it but the steps still read it.
        _record(copied, user)
        yield copied


def _record(batch: object, user: torch.cuda.Stream) -> None:
    for tensor in tensors_of(batch):
        if tensor.is_cuda:
            tensor.record_stream(user)


def ahead(
    source: Iterator[Item],
    transform: Callable[[Item], Result],
    *,
    depth: int,
    threads: int = 1,
    depth_after: Callable[[Result], int] | None = None,
) -> Generator[Result, None, None]:
    """Yield transform(item) for each item, in order, computed ahead in background threads.

    The source is advanced in the caller's thread. Images are read in worker processes
    (engine.workers): Linux kills those when the thread that started them ends, and Ctrl-C could
    not stop a thread that waits for them.

    An error of the source or of `transform` is raised after the results before it. At the end, or
    if this generator is closed early, the threads end, and the source is closed if it is a
    generator.

    Args:
        source: the items.
        transform: called in the threads, in each for one item at a time.
        depth: number of items that are taken from the source beyond the one asked for; the caller
            waits until the source has given them.
        threads: at most `depth` + 1 are used.
        depth_after: returns a smaller depth, but at least 1, for the items that follow a result,
            if few of its kind fit in memory. The first result is then awaited before others start.
    """
    allowed = depth
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
            futures = _submitted(source, transform, pool)
            pending = deque(islice(futures, depth + 1 if depth_after is None else 1))
            while pending:
                if depth_after is not None:
                    allowed = min(depth, max(1, depth_after(pending[0].result())))
                yield pending.popleft().result()
                pending.extend(islice(futures, max(0, allowed + 1 - len(pending))))
    finally:
        if isinstance(source, Generator):
            source.close()


def _submitted(
    source: Iterator[Item], transform: Callable[[Item], Result], pool: ThreadPoolExecutor
) -> Iterator[Future[Result]]:
    """Yield the future result for each item; an error of the source becomes the last result."""

    def submit(item: Item) -> Future[Result]:
        return pool.submit(transform, item)

    try:
        yield from map(submit, source)  # a loop's variable would keep an item until the next one
    except Exception as error:
        failed: Future[Result] = Future()
        failed.set_exception(error)
        yield failed
