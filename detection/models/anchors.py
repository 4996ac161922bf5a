"""Anchor generator: the reference boxes of fixed size and shape of a region proposal network.

B images, A anchors per cell, N = sum of H*W*A over the levels. Frame: network-input pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FeatureShapes = Sequence[tuple[int, int]]
"""(height, width) of each level's feature map, in cells."""


class AnchorGenerator(nn.Module):
    """Places the same A boxes on every cell of a level.

    Anchors are always ordered by level, row, column, ratio, size. This is torchvision's order, so
    its RPN weights can be loaded. An anchor is centred on the top left corner of its cell.

    Args:
        sizes: for each level, square roots of the anchor areas in pixels. Every level has the same
            number of sizes, because the levels share one RPN head.
        ratios: height / width.
        strides: for each level, pixels per cell.
        rounded: round the anchors' corners, at the origin, to whole pixels.
    """

    cell_anchors: Tensor

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        *,
        ratios: Sequence[float],
        strides: Sequence[int],
        rounded: bool = True,
    ) -> None:
        super().__init__()
        assert len(sizes) == len(strides), f"{len(sizes)} levels of sizes, {len(strides)} strides"
        self.strides = tuple(strides)
        scales = torch.tensor(sizes, dtype=torch.float32)  # (levels, sizes)
        # height = size * sqrt(ratio) and width = size / sqrt(ratio), so the area is size**2.
        # (ratios, 1) * (levels, 1, sizes) -> (levels, ratios, sizes) -> (levels, A)
        sqrt_ratios = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]
        heights = (sqrt_ratios * scales[:, None]).flatten(1)
        widths = (1 / sqrt_ratios * scales[:, None]).flatten(1)
        # (levels, A, 4): boxes around the origin. torchvision rounds them, detectron2 does not.
        cell_anchors = torch.stack([-widths, -heights, widths, heights], dim=2) / 2
        cell_anchors = cell_anchors.round() if rounded else cell_anchors
        self.register_buffer("cell_anchors", cell_anchors, persistent=False)

    @property
    def num_anchors(self) -> int:
        """A, the number of anchors per cell."""
        return self.cell_anchors.shape[1]

    def forward(self, feature_shapes: FeatureShapes) -> Tensor:
        """Return the anchors (N, 4) xyxy.

        They are not cached: recomputing them is cheaper than one copy for each padded shape.
        """
        corners = zip(self._cell_corners(feature_shapes), self.cell_anchors, strict=True)
        # Each level: (H*W, 1, 4) as x, y, x, y + (A, 4) -> (H*W, A, 4) -> (H*W*A, 4)
        return torch.cat(
            [(corner.repeat(1, 2)[:, None] + cell).flatten(0, 1) for corner, cell in corners]
        )

    def valid(self, feature_shapes: FeatureShapes, sizes: Tensor, *, size_divisor: int) -> Tensor:
        """Return which anchors each image would have if it were in a batch alone.

        An image is padded to the size of the largest in its batch. Anchors on that extra padding
        are not valid, so that an image's result does not depend on its neighbours.

        Args:
            feature_shapes: as for `forward`.
            sizes: (B, 2) height and width of the images before padding, in pixels.
            size_divisor: multiple to which an image alone would be padded.

        Returns:
            (B, N) bool: the anchor's cell starts inside the image padded alone.
        """
        # (B, 2) height and width, rounded up to a multiple of size_divisor
        padded_sizes = (sizes + size_divisor - 1) // size_divisor * size_divisor
        corners = torch.cat(self._cell_corners(feature_shapes))
        # (cells, 2) < (B, 1, 2), both as x, y -> (B, cells)
        inside = (corners < padded_sizes.flip(1)[:, None]).all(dim=2)
        # All A anchors of a cell are valid or none is.
        return inside.repeat_interleave(self.num_anchors, dim=1)

    def _cell_corners(self, feature_shapes: FeatureShapes) -> list[Tensor]:
        """Return for each level (H*W, 2): x, y of the cells' top left corners, row by row."""
        device = self.cell_anchors.device
        # The product runs over rows first, so it gives (y, x); flipped to (x, y).
        return [
            torch.cartesian_prod(
                torch.arange(height, device=device, dtype=torch.float32) * stride,
                torch.arange(width, device=device, dtype=torch.float32) * stride,
            ).flip(1)
            for (height, width), stride in zip(feature_shapes, self.strides, strict=True)
        ]
