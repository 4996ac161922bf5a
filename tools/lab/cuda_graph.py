"""Capture of some work on a GPU as one CUDA graph."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
WARM_UP_CALLS = 3
"""Calls before the capture: they initialise libraries, which a capture does not allow."""


def captured(work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Return the graph of `work`, and the result whose memory every replay writes again."""
    side_stream = torch.cuda.Stream()  # torch asks for one in the calls before a capture
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(WARM_UP_CALLS):
            work()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result
