"""Sizes of images at evaluation and prediction, at one scale or several."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from backbones.images import resize_pixels
from detection.config import DataConfig, EvaluationConfig
from detection.data.transforms import resized_size


@dataclass(frozen=True)
class EvalSizes:
    """Sizes of an image at evaluation: first the one at which proposals are made.

    short_sides: lengths of the shorter side, in pixels. max_sides: caps on the longer side, in
    proportion. scale_idxs: the indices in `short_sides` of the scales that are tested, by rising
    scale; if there are several, the first size need not be one of them.
    """

    short_sides: tuple[int, ...]
    max_sides: tuple[float, ...]
    scale_idxs: tuple[int, ...]

    @classmethod
    def of(cls, data: DataConfig, evaluation: EvaluationConfig) -> Self:
        """Return the sizes of a run's config."""
        wanted = evaluation.scales or (data.eval_short_side,)
        first = wanted[0] if len(wanted) == 1 else data.eval_short_side
        short_sides = (first, *(side for side in wanted if side != first))
        return cls(
            short_sides=short_sides,
            max_sides=tuple(
                data.eval_max_side * (side / data.eval_short_side) for side in short_sides
            ),
            scale_idxs=tuple(short_sides.index(side) for side in wanted),
        )

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) of an image of `size` after each resize."""
        limits = zip(self.short_sides, self.max_sides, strict=True)
        return [resized_size(size, short_side, max_side) for short_side, max_side in limits]

    def other_pixels(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return an image (H, W, 3) at all sizes but the first."""
        height, width = pixels.shape[:2]
        return tuple(resize_pixels(pixels, size) for size in self.sizes((height, width))[1:])
