"""Capture of some work on a GPU as one CUDA graph, which launches all its kernels at once."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
WARM_UP_CALLS = 3
"""Calls before the capture: they initialise libraries, which a capture does not allow."""


def captured(work: Callable[[], T], *, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """Return the graph of `work`, and the result whose memory every replay writes again.

    Args:
        work: launches kernels and asks nothing of the device; called a few times.
        pool: memory from `torch.cuda.graph_pool_handle()`, shared with other graphs that never run
            at the same time and whose results are no longer needed then; None: memory of its own.
    """
    side_stream = torch.cuda.Stream()  # torch asks for one in the calls before a capture
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(WARM_UP_CALLS):
            work()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = work()
    return graph, result
