"""Batches of the GPU check, in the memory layout of the loader's batches."""

import torch
from torch import Tensor

from detection.structures import DetectionBatch, ImageBatch, Targets
from tools.lab.benchmarks.networks import make_batch

ROWS = 8
"""The loader pads the number of ground-truth boxes of a batch to a multiple of this."""


def loader_like_batch(count: int, size: tuple[int, int], *, masks: bool = False) -> DetectionBatch:
    """Return synthetic images of `size` (height, width): pixels channels last, boxes padded."""
    plain = make_batch(count, size=size, masks=masks)
    images, targets = plain.images, plain.targets
    # -n % ROWS is what is missing to the next multiple
    extra = -targets.boxes.shape[1] % ROWS

    def padded(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(count, extra, *values.shape[2:])], dim=1)

    return DetectionBatch(
        ImageBatch(
            images.pixels.contiguous(memory_format=torch.channels_last),
            images.sizes,
            images.sizes.clone(),
            images.image_ids,
            images.seeds + 1000,
        ),
        Targets(
            padded(targets.boxes),
            padded(targets.labels),
            padded(targets.valid),
            padded(targets.is_crowd),
            None if targets.masks is None else padded(targets.masks),
        ),
    )
