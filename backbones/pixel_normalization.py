"""Pixel normalisation, shared by all networks that have a residual backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PixelNormalizedNetwork(nn.Module):
    """Base class of networks that store their pixel mean and std, and normalise with them."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        """Store the RGB mean and standard deviation, on the scale 0..255."""
        super().__init__()
        # Not persistent: the config holds these values, so the state dict need not.
        mean, std = torch.tensor(pixel_mean), torch.tensor(pixel_std)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1), persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Map RGB pixels (B, 3, H, W) in 0..255 to float32 (pixels - mean) / std."""
        return (pixels - self.pixel_mean) / self.pixel_std
