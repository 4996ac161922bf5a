"""Test-time views of an image: one crop, ten crops, or fully convolutional at several scales.

B images, V views of an image, K classes. Pixels are RGB on the scale 0..255.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.classification.model import Classifier
from engine.errors import UserError

View = Literal["center", "ten_crop", "multi_scale"]


def ten_crops(pixels: Tensor, crop: int) -> Tensor:
    """Crop the centre and the four corners of each image, and flip the five crops.

    Krizhevsky et al. 2012, section 4.1, which the paper's 10-crop testing follows (section 3.4).

    Args:
        pixels: (B, 3, H, W) uint8.
        crop: side of a crop, in pixels.

    Returns:
        (B, V=10, 3, crop, crop) uint8: centre, top left, top right, bottom left, bottom right,
        then the horizontal flip of each in this order.

    Raises:
        UserError: the images are smaller than a crop.
    """
    height, width = pixels.shape[2:]
    bottom, right = height - crop, width - crop
    if min(bottom, right) < 0:
        raise UserError(
            f"evaluation.crop: expected at most the images' sides ({height} x {width}), got {crop}"
        )
    corners = ((bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right))
    crops = [pixels[:, :, top : top + crop, left : left + crop] for top, left in corners]
    crops += [each.flip(3) for each in crops]
    return torch.stack(crops, dim=1)


def predict_probabilities(
    models: Sequence[Classifier],
    pixels: Tensor,
    *,
    view: View,
    crop: int,
    scales: Sequence[int],
) -> Tensor:
    """Return class probabilities of each image, averaged over test-time views and models.

    Args:
        models: at least one, in evaluation mode, with the same K classes; each has its own pixel
            normalisation. Several models are an ensemble.
        pixels: (B, 3, H, W) uint8. "center": the network input. "ten_crop": H and W of at least
            `crop`. "multi_scale": the shorter side is the largest scale, so images only shrink.
        view: "center": the image itself. "ten_crop": see `ten_crops`. "multi_scale": the image
            resized to each of `scales` as shorter side, and its horizontal flip; the logits of all
            windows of `crop` pixels are averaged before the softmax (the paper, section 3.4).
        crop: side of a crop or a window, in pixels.
        scales: "multi_scale": lengths of the shorter side, in pixels.

    Returns:
        (B, K) float32; the softmax is computed in float32, also under autocast.

    Raises:
        UserError: a scale or an image is smaller than a crop.
    """
    probabilities = []
    for images in _views(pixels, view=view, crop=crop, scales=scales):
        for model in models:
            x = model.normalize(images)
            dense = view == "multi_scale"
            logits = model.dense_logits(x, window=crop) if dense else model(x)
            probabilities.append(logits.float().softmax(dim=1))
    return torch.stack(probabilities).mean(dim=0)


def _views(pixels: Tensor, *, view: View, crop: int, scales: Sequence[int]) -> Iterator[Tensor]:
    """Yield the views (B, 3, h, w) one by one, so that memory holds activations of only one."""
    if view == "center":
        yield pixels
    elif view == "ten_crop":
        yield from ten_crops(pixels, crop).unbind(dim=1)
    else:
        if min(scales) < crop:
            raise UserError(
                f"evaluation.scales: expected at least evaluation.crop ({crop}), got {min(scales)}"
            )
        for scale in scales:
            resized = resize_short_side(pixels, scale)
            yield resized
            yield resized.flip(3)


def resize_short_side(pixels: Tensor, short_side: int) -> Tensor:
    """Return float32 images (B, 3, h, w) with this shorter side and the same aspect ratio."""
    sides = pixels.shape[2:]
    size = [round(side * short_side / min(sides)) for side in sides]
    # In float, because CUDA cannot interpolate uint8. Not rounded back, which would add noise.
    return F.interpolate(pixels.float(), size, mode="bilinear", align_corners=False, antialias=True)
