"""Mask head of Mask R-CNN (He et al. 2017): a small mask of every class for each RoI.

N RoIs of a batch, C channels, h x w cells of a pooled RoI, K classes, M cells along a mask's side.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskHead(nn.Module):
    """3x3 convolutions, a deconvolution that doubles the side, and a 1x1 convolution to classes.

    There are four 3x3 convolutions on RoIs pooled from a pyramid, and none on conv5's output, which
    is deep enough (figure 4 of the paper).
    """

    def __init__(
        self, in_channels: int, *, num_convs: int, hidden_dim: int, num_classes: int
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number in range(num_convs):
            layers[f"conv{number + 1}"] = nn.Conv2d(in_channels, hidden_dim, 3, padding=1)
            layers[f"relu{number + 1}"] = nn.ReLU(inplace=True)
            in_channels = hidden_dim
        self.convs = nn.Sequential(layers)
        # kernel 2, stride 2: every input cell makes 2x2 output cells, without overlap
        self.deconv = nn.ConvTranspose2d(in_channels, hidden_dim, 2, stride=2)
        self.logits = nn.Conv2d(hidden_dim, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        # As in detectron2: logits near 0, so before training all masks are about 0.5.
        nn.init.normal_(self.logits.weight, std=0.001)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits (N, K, 2h, 2w) from (N, C, h, w)."""
        logits: Tensor = self.logits(F.relu(self.deconv(self.convs(pooled))))
        return logits


def masks_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mask of each RoI's class: (..., K, M, M) and labels (...) -> (..., M, M)."""
    side = logits.shape[-1]
    # gather does not broadcast: the index is expanded to (..., 1, M, M), without a copy
    idxs = labels[..., None, None, None].expand(*labels.shape, 1, side, side)
    return torch.gather(logits, -3, idxs).squeeze(-3)
