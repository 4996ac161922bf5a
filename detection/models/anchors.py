"""Anchors: the boxes of fixed size and shape from which the region proposal network starts.

B images, A anchors a cell, N = sum of H*W*A over the levels. Frame: network-input pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FeatureShapes = Sequence[tuple[int, int]]
"""(height, width) of each level's feature map, in cells."""


class AnchorGenerator(nn.Module):
    """Places the same few boxes on every cell of every level.

    Order everywhere: level, row, column, then within a cell ratio by ratio, size by size
    (torchvision's, so its RPN weights fit). An anchor is centred on its cell's top left corner.

    Args:
        sizes: for each level, square roots of the anchor areas in pixels; as many on every level,
            since the levels share one RPN head.
        ratios: heights over widths.
        strides: for each level, pixels per cell.
    """

    cell_anchors: Tensor

    def __init__(
        self, sizes: Sequence[Sequence[float]], *, ratios: Sequence[float], strides: Sequence[int]
    ) -> None:
        super().__init__()
        assert len(sizes) == len(strides), f"{len(sizes)} levels of sizes, {len(strides)} strides"
        self.strides = tuple(strides)
        scales = torch.tensor(sizes, dtype=torch.float32)  # (levels, sizes)
        heights_per_width = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
        heights = (heights_per_width * scales[:, None]).flatten(1)
        widths = (1 / heights_per_width * scales[:, None]).flatten(1)
        # Rounded to whole pixels, as in torchvision: published weights were trained so.
        cell_anchors = (torch.stack([-widths, -heights, widths, heights], dim=2) / 2).round()
        self.register_buffer("cell_anchors", cell_anchors, persistent=False)

    @property
    def num_anchors(self) -> int:
        """Anchors on one cell."""
        return self.cell_anchors.shape[1]

    def forward(self, feature_shapes: FeatureShapes) -> Tensor:
        """Return (N, 4) xyxy. Not cached: cheaper than keeping one copy for each padded shape."""
        corners = zip(self._cell_corners(feature_shapes), self.cell_anchors, strict=True)
        return torch.cat(
            [(corner.repeat(1, 2)[:, None] + cell).flatten(0, 1) for corner, cell in corners]
        )

    def valid(self, feature_shapes: FeatureShapes, sizes: Tensor, *, size_divisor: int) -> Tensor:
        """Tell which anchors an image has, whatever it was padded to beside larger ones.

        Args:
            feature_shapes: as for `forward`.
            sizes: (B, 2) height and width of the images before padding, in pixels.
            size_divisor: multiple to which an image would be padded on its own.

        Returns:
            (B, N) bool: the anchor's cell starts inside the image's own padded frame.
        """
        frames = (sizes + size_divisor - 1) // size_divisor * size_divisor
        corners = torch.cat(self._cell_corners(feature_shapes))
        inside = (corners < frames.flip(1)[:, None]).all(dim=2)
        return inside.repeat_interleave(self.num_anchors, dim=1)

    def _cell_corners(self, feature_shapes: FeatureShapes) -> list[Tensor]:
        """Return for each level (H*W, 2): x, y of the cells' top left corners, row by row."""
        device = self.cell_anchors.device
        return [
            torch.cartesian_prod(
                torch.arange(height, device=device, dtype=torch.float32) * stride,
                torch.arange(width, device=device, dtype=torch.float32) * stride,
            ).flip(1)
            for (height, width), stride in zip(feature_shapes, self.strides, strict=True)
        ]
