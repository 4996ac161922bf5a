"""Prediction as CUDA graphs: one launch a batch instead of one for each kernel.

A small batch on a GPU is bound by its launches, some 500 for R50-FPN (docs/LOG.md, 2026-11-28).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detection.inference.pipeline import InferencePipeline
from detection.models.selection import Selection
from detection.ops.nms import waits_on
from detection.structures import Detections, ImageBatch
from engine.cuda_graph import captured
from engine.errors import UserError
from engine.structures import tensors_of

MAX_SHAPES = 64
"""Graphs that are kept; the oldest one is dropped for a new shape."""


class _Graph(NamedTuple):
    """A captured graph.

    batches: the images that it reads, at each scale. replay: runs it. found, masks: what it writes,
    as `InferencePipeline.select` with all masks.
    """

    batches: tuple[ImageBatch, ...]
    replay: Callable[[], None]
    found: Selection
    masks: Tensor | None


class GraphedDetector:
    """Predicts what `InferencePipeline` does, on a GPU, with one CUDA graph per batch shape.

    The first batch of a shape runs a few times and is captured. All graphs share their memory, so
    only one thread may predict at a time. The networks' weights must stay where they are.

    Raises:
        UserError: suppression (NMS) on this device waits for it, which a graph does not allow.
    """

    def __init__(self, pipeline: InferencePipeline, *, device: torch.device) -> None:
        if waits_on(device):
            raise UserError(f"cuda_graphs: expected fast kernels of NMS on {device}, got none")
        self._pipeline = pipeline
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}

    def predict(self, batches: Sequence[ImageBatch]) -> list[Detections]:
        """Return the objects found in each image, in original pixels, on the CPU.

        Called in the contexts (inference mode, autocast) in which the networks would be.
        """
        shapes = tuple(images.pixels.shape for images in batches)
        if shapes not in self._graphs:
            if len(self._graphs) == MAX_SHAPES:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[shapes] = self._capture(batches)
        graph = self._graphs[shapes]
        with torch.cuda.device(self._device):
            tensors = zip(tensors_of(graph.batches), tensors_of(tuple(batches)), strict=True)
            for own, given in tensors:
                own.copy_(given, non_blocking=True)
            graph.replay()
            # copies to the host, so the next graph may overwrite the memory
            return self._pipeline.to_detections(graph.found, graph.masks, batches[0])

    def _capture(self, batches: Sequence[ImageBatch]) -> _Graph:
        own = tuple(images.clone() for images in batches)
        graph, (found, masks) = captured(
            lambda: self._pipeline.select(own, all_masks=True), device=self._device, pool=self._pool
        )
        return _Graph(own, graph.replay, found, masks)
