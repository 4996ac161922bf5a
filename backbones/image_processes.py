"""Work on many images in several processes, with progress."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from backbones.images import quiet_opencv
from engine.errors import UserError
from engine.log import RunLog

T = TypeVar("T")
R = TypeVar("R")

FEWEST_FOR_PROCESSES = 500
"""Starting processes takes as long as decoding some hundred images."""
_CHUNK = 32


def map_images(
    function: Callable[[T], R], items: Sequence[T], *, workers: int, log: RunLog, what: str
) -> Iterator[R]:
    """Yield function(item) of each item, in order.

    Args:
        function: called in the processes; picklable, as are items and results.
        items: a few hundred bytes each.
        workers: number of processes; 0, or too few items, works in this one.
        log: shows the progress.
        what: what is done, such as "decoding images of data/train".

    Raises:
        UserError: a process was killed; or what `function` raises.
    """
    if workers == 0 or len(items) < FEWEST_FOR_PROCESSES:
        yield from log.progress(map(function, items), len(items), what)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=quiet_opencv) as pool:
        try:
            results = pool.map(function, items, chunksize=_CHUNK)
            yield from log.progress(results, len(items), what)
        except BrokenProcessPool as error:
            raise UserError(
                f"{what}: a process was killed, for lack of memory? --workers 0 takes the least"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
