"""Augmentation of a whole batch on the device: crop, flip, random erasing, mixup, cutmix.

It has no loop over images, and the host never waits for the device. All random numbers come from
each image's seed, so an image gets the same ones in any batch. B images, K classes, H x W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.random_keys import random_keys, random_uniforms

# a separate stream of random numbers for each use of a seed
_SHIFT, _FLIP, _ERASE, _ERASE_PLACE, _MIXUP, _CUTMIX, _CUTMIX_PLACE, _CHOICE = range(8)

# Zhong et al. 2017, *Random Erasing Data Augmentation*, with torchvision's ranges
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = (0.3, 3.3)  # height / width


def pad_crop_flip(
    pixels: Tensor, seeds: Tensor, *, pad: int, flip_prob: float, crop: int | None = None
) -> Tensor:
    """Pad with zeros, crop at a random position, and flip horizontally at random.

    pad=4, flip_prob=0.5 and a crop of the original size are the paper's augmentation for CIFAR-10
    (section 4.2).

    Args:
        pixels: (B, 3, H, W) uint8.
        seeds: (B,) int64.
        pad: zero padding on every side, in pixels.
        flip_prob: probability of a horizontal flip.
        crop: side of the square crop, at most the padded height and width; None keeps (H, W).

    Returns:
        (B, 3, crop, crop) or (B, 3, H, W) uint8.
    """
    batch, channels, full_height, full_width = pixels.shape
    height, width = (crop, crop) if crop else (full_height, full_width)
    down, across = (random_keys(seeds, 2, stream=_SHIFT)).split(1, dim=1)
    down = down % (full_height + 2 * pad - height + 1)
    across = across % (full_width + 2 * pad - width + 1)
    is_flipped = random_uniforms(seeds, 1, stream=_FLIP) < flip_prob
    # Crop and flip are one gather over the flattened padded image: each output cell's source index.
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(is_flipped, columns.flip(0), columns) + across  # (B, W)
    rows = torch.arange(height, device=pixels.device) + down  # (B, H)
    cells = rows[:, :, None] * (full_width + 2 * pad) + columns[:, None, :]
    padded = F.pad(pixels, (pad, pad, pad, pad)).flatten(2)
    index = cells.view(batch, 1, -1).expand(-1, channels, -1)
    return padded.gather(2, index).view(batch, channels, height, width)


def random_erase(x: Tensor, seeds: Tensor, *, prob: float) -> Tensor:
    """Set a random rectangle of an image to 0, the mean colour, with probability `prob`.

    The rectangle covers 0.02 to 0.33 of the area. Its height / width is log-uniform in [0.3, 3.3],
    restricted to rectangles that fit into the image.

    Args:
        x: (B, 3, H, W) float, normalised.
        seeds: (B,) int64.
        prob: probability that an image is changed.
    """
    height, width = x.shape[2:]
    uniform, area, aspect = random_uniforms(seeds, 3, stream=_ERASE).unbind(dim=1)
    area = _ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0])
    # Limit the aspect so that the rectangle fits: sampling again until it fits would need a loop.
    # columns = sqrt(area H W / aspect) <= W: aspect >= area H / W
    # rows = sqrt(area H W aspect) <= H: aspect <= H / (W area)
    lowest = (area * height / width).log().clamp(min=math.log(_ERASED_ASPECT[0]))
    highest = (height / width / area).log().clamp(max=math.log(_ERASED_ASPECT[1]))
    aspect = torch.lerp(lowest, highest, aspect).exp()
    cells = area * height * width
    rows = (cells * aspect).sqrt().round().long().clamp(1, height)
    columns = (cells / aspect).sqrt().round().long().clamp(1, width)
    keys = random_keys(seeds, 2, stream=_ERASE_PLACE)
    top, left = keys[:, 0] % (height - rows + 1), keys[:, 1] % (width - columns + 1)
    inside = _inside(x, top, top + rows, left, left + columns)
    return x.masked_fill(inside & (uniform < prob)[:, None, None, None], 0.0)


def mixup_cutmix(
    x: Tensor, targets: Tensor, seeds: Tensor, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[Tensor, Tensor]:
    """Mix each image and its target with an image from the other half of the batch.

    Its neighbour in the batch is not used: it is the same image if the loader repeats images.

    Mixup (Zhang et al. 2017) blends two images with a ratio sampled from Beta(alpha, alpha). Cutmix
    (Yun et al. 2019) pastes a rectangle with a sampled share of the area, clipped at the border;
    the targets are weighted by the area that remains. With both on, each image randomly gets one.

    Args:
        x: (B, 3, H, W) float32, normalised; a batch of one image is unchanged.
        targets: (B, K) float32, sum 1 for each image.
        seeds: (B,) int64.
        mixup_alpha: 0 is off.
        cutmix_alpha: 0 is off.

    Returns:
        mixed images and targets, of the same shapes.
    """
    if mixup_alpha == 0 and cutmix_alpha == 0:
        return x, targets
    # weight of the own image at each pixel, (B, 1, 1 or H, 1 or W)
    if cutmix_alpha == 0:
        own = _mixup_share(seeds, mixup_alpha)
    elif mixup_alpha == 0:
        own = _cutmix_share(x, seeds, cutmix_alpha)
    else:
        is_mixup = random_uniforms(seeds, 1, stream=_CHOICE)[:, :, None, None] < 0.5
        own = torch.where(
            is_mixup, _mixup_share(seeds, mixup_alpha), _cutmix_share(x, seeds, cutmix_alpha)
        )
    shift = len(x) // 2
    mixed = torch.lerp(x.roll(shift, 0), x, own)
    return mixed, torch.lerp(targets.roll(shift, 0), targets, own.mean(dim=(2, 3)))


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return one-hot targets (B, K) float32 with label smoothing.

    A share `smoothing` of each target is spread evenly over all K classes, as in
    `torch.nn.CrossEntropyLoss(label_smoothing=smoothing)` (Szegedy et al. 2015, section 7).
    labels: (B,) int64.
    """
    is_label = labels[:, None] == torch.arange(num_classes, device=labels.device)
    return is_label.float() * (1 - smoothing) + smoothing / num_classes


def _mixup_share(seeds: Tensor, alpha: float) -> Tensor:
    return _symmetric_beta(seeds, alpha, stream=_MIXUP)[:, None, None, None]


def _cutmix_share(x: Tensor, seeds: Tensor, alpha: float) -> Tensor:
    height, width = x.shape[2:]
    # The pasted share of the area is 1 - beta, so its sides are sqrt(1 - beta) of the image's.
    half = (1 - _symmetric_beta(seeds, alpha, stream=_CUTMIX)).sqrt() / 2
    half_rows, half_columns = (half * height).long(), (half * width).long()
    keys = random_keys(seeds, 2, stream=_CUTMIX_PLACE)
    row, column = keys[:, 0] % height, keys[:, 1] % width
    pasted = _inside(
        x, row - half_rows, row + half_rows, column - half_columns, column + half_columns
    )
    return (~pasted).float()


def _inside(x: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return (B, 1, H, W) bool, true inside each image's rectangle.

    top, bottom, left, right: (B,) int64; bottom and right are exclusive.
    """
    rows = torch.arange(x.shape[2], device=x.device)
    columns = torch.arange(x.shape[3], device=x.device)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def _symmetric_beta(seeds: Tensor, alpha: float, *, stream: int) -> Tensor:
    """Sample (B,) float32 from Beta(alpha, alpha), alpha above 0, with two uniforms u and v each.

    Student's t with 2 alpha degrees of freedom is sqrt(2 alpha (u**(-1/alpha) - 1)) cos(2 pi v)
    (Bailey 1994, *Polar generation of random variates with the t-distribution*), and
    1/2 + t / (2 sqrt(2 alpha + t**2)) is Beta(alpha, alpha) (Devroye 1996, *Random variate
    generation in one line of code*). The code is arranged so that u**(1/alpha) may underflow.
    """
    u, v = random_uniforms(seeds, 2, stream=stream).unbind(dim=1)
    # With w = u**(1/alpha): t**2 / (2 alpha + t**2) = (1 - w) cos**2 / (w + (1 - w) cos**2).
    # power is log w, scaled is (1 - w) cos**2.
    power = u.log() / alpha
    cosine = torch.cos(2 * math.pi * v)  # never 0: no float32 is an exact zero of the cosine
    scaled = -torch.expm1(power) * cosine**2
    return (1 + cosine.sign() * (scaled / (power.exp() + scaled)).sqrt()) / 2
