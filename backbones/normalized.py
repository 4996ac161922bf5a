"""What every network on a residual backbone does first: its pixels' mean and deviation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormalizedNetwork(nn.Module):
    """Base of a network that knows the mean and deviation of the pixels it was trained on."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        """Take RGB means and deviations on the scale 0..255."""
        super().__init__()
        # In the config, not in the weights: hence not persistent.
        mean, std = torch.tensor(pixel_mean), torch.tensor(pixel_std)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1), persistent=False)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Map RGB pixels (B, 3, H, W), 0..255, to float32 of about zero mean and unit deviation."""
        return (pixels - self.pixel_mean) / self.pixel_std
