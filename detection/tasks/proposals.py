"""Proposals of a trained detector on its validation images, to measure what the RPN misses.

B images, P proposals.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detection.models.faster_rcnn import FasterRCNN
from detection.ops.boxes import box_factors
from detection.structures import ImageBatch
from detection.tasks.detection import DetectionTask
from engine.backend_settings import backend_settings
from engine.loader import evaluation_batches, read_batches
from engine.precision import autocast
from engine.step import move_task


def predict_proposals(
    task: DetectionTask,
    *,
    device: torch.device,
    progress: Callable[[Iterable[Any], int, str], Iterator[Any]],
) -> dict[int, np.ndarray]:
    """Return the proposals of every validation image by its id.

    Args:
        task: the trained detector; in evaluation mode afterwards.
        device: where it runs.
        progress: passes the batches through and shows how far it is.

    Returns:
        (P, 4) float32 xyxy in pixels of the file, by falling objectness, at most
        `model.rpn.post_nms_topk_test`. A bad image that is skipped has no entry.

    Raises:
        UserError: an image is bad and the policy is to stop.
    """
    data, config = task.val_data(), task.config
    batches = evaluation_batches(data.groups, batch_size=config.loop.eval_batch_size)
    found: dict[int, np.ndarray] = {}
    with backend_settings(config.loop, device):
        move_task(task, config.loop, device)
        task.model.eval()
        reading = read_batches(data, batches, config=config.loader, device=device, substitute=False)
        with (
            torch.inference_mode(),
            autocast(device, config.loop.precision),
            closing(reading) as loaded_batches,
        ):
            for loaded in progress(loaded_batches, len(batches), "finding proposals"):
                batch: Any = loaded.batch
                if batch is not None:  # else all of its images were skipped
                    boxes = _proposals_of(task.model, batch.images)
                    ids = batch.images.image_ids.tolist()
                    found |= zip(ids, (each.numpy() for each in boxes), strict=True)
    return found


def _proposals_of(model: FasterRCNN, images: ImageBatch) -> list[Tensor]:
    """Return the valid proposals of each image on the CPU, in pixels of its file."""
    found = model.proposals(model.features(images), images)
    scale = box_factors(images.sizes, images.original_sizes)  # to pixels of the file
    boxes = (found.boxes * scale[:, None]).float().cpu()
    return [each[valid] for each, valid in zip(boxes, found.valid.cpu(), strict=True)]
