"""Images flipped left to right, and predictions flipped back.

B images, R RoIs per image, K classes.
"""

from dataclasses import replace

import torch

from detection.models.selection import BoxPredictions
from detection.ops.boxes import flip_boxes
from detection.structures import ImageBatch


def mirror_images(images: ImageBatch) -> ImageBatch:
    """Return the images flipped left to right, each within its own width; padding stays right."""
    columns = torch.arange(images.pixels.shape[3], device=images.sizes.device)
    width = images.sizes[:, 1:]  # (B, 1)
    source = torch.where(columns < width, width - 1 - columns, columns)  # (B, W)
    pixels = torch.take_along_dim(images.pixels, source[:, None, None], dim=3)
    layout = torch.channels_last  # as collated
    return replace(images, pixels=pixels.contiguous(memory_format=layout))


def mirror_predictions(predictions: BoxPredictions, images: ImageBatch) -> BoxPredictions:
    """Return predictions for mirrored images in the pixels of the images themselves."""
    width = images.sizes[:, 1, None, None].float()  # (B, 1, 1), for boxes (B, R, K, 4)
    return predictions._replace(boxes=flip_boxes(predictions.boxes, width))
