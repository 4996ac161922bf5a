"""Prediction as CUDA graphs: one launch a batch instead of one for each kernel.

A small batch on a GPU is bound by its launches, some 500 for R50-FPN (docs/LOG.md, 2026-11-28).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from detection.models.box_head import Selection, to_detections
from detection.models.faster_rcnn import FasterRCNN
from detection.ops.nms import waits_on
from detection.structures import Detections, ImageBatch
from engine.cuda_graph import captured
from engine.errors import UserError
from engine.structures import tensors_of

MAX_SHAPES = 64
"""Graphs that are kept; the oldest one is dropped for a new shape."""


class _Graph(NamedTuple):
    """A captured graph.

    images: the tensors that it reads. replay: runs it. found, masks: what it writes, as
    `FasterRCNN.select` with all masks.
    """

    images: ImageBatch
    replay: Callable[[], None]
    found: Selection
    masks: Tensor | None


class GraphedDetector:
    """Predicts what `FasterRCNN.predict` does, on a GPU, with one CUDA graph per batch shape.

    The first batch of a shape runs a few times and is captured. All graphs share their memory, so
    only one thread may predict at a time. The network's weights must stay where they are.

    Raises:
        UserError: suppression (NMS) on this device waits for it, which a graph does not allow.
    """

    def __init__(self, model: FasterRCNN, *, device: torch.device) -> None:
        if waits_on(device):
            raise UserError(f"cuda_graphs: expected fast kernels of NMS on {device}, got none")
        self._model = model
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[torch.Size, _Graph] = {}

    def predict(self, images: ImageBatch) -> list[Detections]:
        """Return the objects found in each image, in original pixels, on the CPU.

        Called in the contexts (inference mode, autocast) in which the network would be.
        """
        shape = images.pixels.shape
        if shape not in self._graphs:
            if len(self._graphs) == MAX_SHAPES:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[shape] = self._capture(images)
        graph = self._graphs[shape]
        with torch.cuda.device(self._device):
            for own, given in zip(tensors_of(graph.images), tensors_of(images), strict=True):
                own.copy_(given, non_blocking=True)
            graph.replay()
            aligned = self._model.config.mask.aligned
            # copies to the host, so the next graph may overwrite the memory
            return to_detections(graph.found, images, masks=graph.masks, aligned=aligned)

    def _capture(self, images: ImageBatch) -> _Graph:
        own = images.clone()
        graph, (found, masks) = captured(
            lambda: self._model.select(own, all_masks=True), device=self._device, pool=self._pool
        )
        return _Graph(own, graph.replay, found, masks)
