"""Region proposal network (RPN): an objectness logit and box deltas for every anchor.

B images, C channels, A anchors per cell, N = sum of H*W*A over the levels, S samples per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.kernels.conv_relu import conv_relu
from detection.ops.kernels.neighbours import pick_neighbours


@dataclass(frozen=True)
class RPNOutput:
    """Output of the region proposal network for one batch.

    objectness_logits: (B, N) float32. deltas: (B, N, 4) float32 (dx, dy, dw, dh) relative to
    `anchors`. anchors: (N, 4) xyxy, network-input pixels, the same for every image. anchor_valid:
    (B, N) bool, False for anchors on padding. level_sizes: number of anchors on each level, in
    order; they sum to N.
    """

    objectness_logits: Tensor
    deltas: Tensor
    anchors: Tensor
    anchor_valid: Tensor
    level_sizes: tuple[int, ...]


class RPNHead(nn.Module):
    """3x3 convolutions, then two sibling 1x1 convolutions; all levels share them.

    Some of them are not called as modules, so their forward hooks may not run.

    Args:
        in_channels: C.
        num_anchors: A.
        num_convs: number of 3x3 convolutions, each with ReLU.
    """

    def __init__(self, in_channels: int, num_anchors: int, *, num_convs: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        # Apart from the first, so that its state dict keys do not depend on their number.
        self.later_convs = nn.ModuleList(
            nn.Conv2d(in_channels, in_channels, 3, padding=1) for _ in range(num_convs - 1)
        )
        self.objectness = nn.Conv2d(in_channels, num_anchors, 1)
        self.deltas = nn.Conv2d(in_channels, num_anchors * 4, 1)
        for layer in (*self._convs(), self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return objectness logits (B, N) and deltas (B, N, 4), in the order of the anchors.

        Args:
            features: for each level (B, C, H, W).

        Returns:
            float32 even under autocast, because box arithmetic needs it.
        """
        hidden = list(features)
        for conv in self._convs():
            hidden = [conv_relu(x, conv.weight, conv.bias, padding=(1, 1)) for x in hidden]
        # (B, A, H, W) -> (B, H, W, A) -> (B, H*W*A): the order of AnchorGenerator. The same for
        # (B, A*4, H, W); the four deltas of an anchor stay adjacent.
        logits = [self.objectness(level).permute(0, 2, 3, 1).flatten(1) for level in hidden]
        deltas = [self.deltas(level).permute(0, 2, 3, 1).flatten(1) for level in hidden]
        return torch.cat(logits, 1).float(), torch.cat(deltas, 1).unflatten(1, (-1, 4)).float()

    def at(self, features: Sequence[Tensor], idxs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, S) and deltas (B, S, 4) that `forward` gives for some anchors.

        The losses use a few hundred anchors of each image. With this method the backward pass costs
        only as much as these anchors. With `forward`, gradients that are nearly all zero go through
        the convolution of every level, which takes a seventh of a training step of R50-FPN
        (docs/LOG.md).

        Args:
            features: as for `forward`.
            idxs: (B, S) int64 into N.

        Returns:
            float32 even under autocast.
        """
        # An anchor's index is cell * A + its number within the cell.
        num_anchors = self.objectness.out_channels
        *convs, last = self._convs()
        radius = len(convs) + 1
        around, inside = pick_neighbours(features, idxs // num_anchors, radius=radius)
        # As a batch of B * S small maps (B * S, C, D, D), D = 2 radius + 1. Each convolution
        # without padding shrinks them by a cell on all sides, until the last reads 3x3.
        maps, inside = around.flatten(0, 1).permute(0, 3, 1, 2), inside.flatten(0, 1)[:, None]
        for conv in convs:
            inside = inside[..., 1:-1, 1:-1]
            maps = F.relu(F.conv2d(maps, conv.weight, conv.bias))
            # outside of the feature map the next convolution is padded with zeros
            maps = maps.masked_fill(~inside, 0.0)
        # (B * S, C, 3, 3) -> (B, S, 9 C), the cells row by row
        around = maps.permute(0, 2, 3, 1).flatten(1).unflatten(0, idxs.shape)
        hidden = F.relu(_conv_at(around, last))  # (B, S, C)
        # (B, S, A) and (B, S, A*4): all anchors of the sampled cells, of which one is taken
        logits, deltas = _conv_at(hidden, self.objectness), _conv_at(hidden, self.deltas)
        anchor = (idxs % num_anchors)[..., None]  # (B, S, 1)
        logits = logits.gather(2, anchor).squeeze(2)
        deltas = deltas.unflatten(2, (num_anchors, 4))
        deltas = deltas.gather(2, anchor[..., None].expand(-1, -1, -1, 4)).squeeze(2)
        return logits.float(), deltas.float()

    def _convs(self) -> list[nn.Conv2d]:
        """Return the 3x3 convolutions in order."""
        return [self.conv, *(conv for conv in self.later_convs if isinstance(conv, nn.Conv2d))]


def _conv_at(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the convolution's output (..., D) at one position, given the cells under its kernel.

    Args:
        x: (..., kernel height * kernel width * C), the cells row by row.
        conv: convolution from C to D channels.
    """
    # (D, C, kh, kw) -> (D, kh, kw, C) -> (D, kh * kw * C): the order of `x`
    return F.linear(x, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
