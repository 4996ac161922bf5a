"""Capture of some work on a GPU as one CUDA graph, which launches all its kernels at once."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
WARM_UP_CALLS = 3
"""Calls before the capture: they initialise libraries, which a capture does not allow."""


def captured(
    work: Callable[[], T], *, device: torch.device, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, T]:
    """Return the graph of `work`, and the result whose memory every replay writes again.

    Args:
        work: launches kernels and asks nothing of the device; called a few times.
        device: the GPU that it works on; the current device for replays, too.
        pool: memory from `torch.cuda.graph_pool_handle()`, shared with other graphs that never run
            at the same time and whose results are no longer needed then; None: memory of its own.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # torch asks for one in the calls before a capture
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_CALLS):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # The stream is given, because torch's own may belong to another GPU. Other threads may
        # allocate memory meanwhile (thread_local).
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            result = work()
    return graph, result
