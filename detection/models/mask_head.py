"""Mask head of Mask R-CNN (He et al. 2017): a small mask of every class for each RoI.

N RoIs of a batch, C channels, h x w cells of a pooled RoI, K classes, M cells along a mask's side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detection.models.region_convs import RegionConvs, RegionNorm, init_convolutions


class MaskHead(nn.Module):
    """3x3 convolutions, a deconvolution that doubles the side, and a 1x1 convolution to classes.

    There are four 3x3 convolutions on RoIs pooled from a pyramid, and none on conv5's output, which
    is deep enough (figure 4 of the paper).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_convs: int,
        hidden_dim: int,
        num_classes: int,
        norm: RegionNorm = "none",
    ) -> None:
        super().__init__()
        self.convs = RegionConvs(in_channels, num_convs=num_convs, channels=hidden_dim, norm=norm)
        # kernel 2, stride 2: every input cell makes 2x2 output cells, without overlap
        self.deconv = nn.ConvTranspose2d(self.convs.out_channels, hidden_dim, 2, stride=2)
        self.logits = nn.Conv2d(hidden_dim, num_classes, 1)
        init_convolutions(self)
        # As in detectron2: logits near 0, so before training all masks are about 0.5.
        nn.init.normal_(self.logits.weight, std=0.001)

    def forward(self, pooled: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return logits (N, K, 2h, 2w) from (N, C, h, w).

        valid: (N,) bool, the RoIs that give batch norm its statistics; None: all.
        """
        logits: Tensor = self.logits(F.relu(self.deconv(self.convs(pooled, valid))))
        return logits


def masks_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mask of each RoI's class: (..., K, M, M) and labels (...) -> (..., M, M)."""
    side = logits.shape[-1]
    # gather does not broadcast: the index is expanded to (..., 1, M, M), without a copy
    idxs = labels[..., None, None, None].expand(*labels.shape, 1, side, side)
    return torch.gather(logits, -3, idxs).squeeze(-3)
