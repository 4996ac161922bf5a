"""Stack of 3x3 convolutions on pooled RoIs: the beginning of a box head or a mask head.

N RoIs of a batch, some of them padding, C channels, h x w cells of a pooled RoI.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.norm import conv_norm_relu, make_norm
from engine.sync_norm import MaskedBatchNorm2d

RegionNorm = Literal["none", "batch", "group"]


class RegionConvs(nn.Module):
    """3x3 convolutions with ReLU: conv1, norm1, conv2, norm2, ...; it may have none.

    Args:
        in_channels: C of the RoIs.
        num_convs: number of convolutions.
        channels: of each convolution.
        norm: after each convolution, which then has no bias. batch: the valid rows alone give the
            statistics; `synchronise_norms` takes them over all processes.
    """

    def __init__(
        self, in_channels: int, *, num_convs: int, channels: int, norm: RegionNorm = "none"
    ) -> None:
        super().__init__()
        self.num_convs = num_convs
        self.out_channels = channels if num_convs else in_channels
        for number in range(1, num_convs + 1):
            conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=norm == "none")
            self.add_module(f"conv{number}", conv)
            if norm == "batch":
                self.add_module(f"norm{number}", MaskedBatchNorm2d(channels))
            elif norm == "group":
                self.add_module(f"norm{number}", make_norm("group", channels))
            in_channels = channels

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return (N, out_channels, h, w) from (N, C, h, w).

        valid: (N,) bool, the rows that give batch norm its statistics; None: all.
        """
        for number in range(1, self.num_convs + 1):
            conv: nn.Conv2d = getattr(self, f"conv{number}")
            norm: nn.Module | None = getattr(self, f"norm{number}", None)
            if norm is None:
                x = F.relu(conv(x), inplace=True)
            else:
                x = conv_norm_relu(x, conv, norm, valid=valid)
        return x


def init_convolutions(network: nn.Module) -> None:
    """Initialise all convolutions as detectron2's c2_msra_fill: He's by fan_out, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
