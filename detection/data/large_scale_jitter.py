"""Large-scale jitter: a random square of an image that was resized by a random scale.

"Simple Copy-Paste is a Strong Data Augmentation Method" (Ghiasi et al., CVPR 2021): the image is
resized, a square of S x S is cropped where it is larger and padded with grey at the right and
bottom where it is smaller, then the square is mirrored. detectron2's new baselines do the same, but
with one random number for both axes of the crop. N boxes of one image.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from backbones.images import REDUCTIONS, resize_method
from detection.data.masks import Rectangle, TightMask
from detection.data.transforms import MIN_SIDE
from detection.data_config import AugmentConfig

PAD_VALUE = 128
"""Grey of the padding, as in detectron2's FixedSizeCrop."""
_PHASES = 64
"""A crop is at most 1 / 64 pixel off the grid of the whole image's resize: a pixel of the resized
image, or of the image before where those are smaller."""


@dataclass(frozen=True)
class SquareView:
    """A square of S x S pixels of a resized image, mirrored or not.

    size: (height, width) of the file. resized: (height, width) of the whole image after the resize.
    top, left: of the square in it. side: S. mirror_x, mirror_y: whether the square, with its
    padding, is flipped left-right and up-down.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    side: int
    mirror_x: bool
    mirror_y: bool

    @property
    def window(self) -> Rectangle:
        """The part of the resized image that the square shows; the rest of it is padding."""
        height = min(self.side, self.resized[0] - self.top)
        return Rectangle(self.top, self.left, height, min(self.side, self.resized[1] - self.left))

    @property
    def content(self) -> Rectangle:
        """The part of the square, after the mirroring, that is not padding."""
        window = self.window
        return self.place(Rectangle(0, 0, window.height, window.width))

    @property
    def reduction(self) -> int:
        """Largest reduction of `backbones.images.decode` that need not be enlarged again."""
        factor = min(before // after for before, after in zip(self.size, self.resized, strict=True))
        return max(reduction for reduction in REDUCTIONS if reduction <= max(1, factor))

    def place(self, region: Rectangle) -> Rectangle:
        """Return where a part of the square is after the mirroring; also the way back."""
        top = self.side - region.bottom if self.mirror_y else region.top
        left = self.side - region.right if self.mirror_x else region.left
        return Rectangle(top, left, region.height, region.width)

    def place_mask(self, mask: TightMask) -> TightMask:
        """Return a mask of the square after the mirroring."""
        region = self.place(mask.rectangle)
        pixels = mask.pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return TightMask(pixels, region.top, region.left)

    def place_boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes (N, 4) of the file in the square, clipped to it, and which it shows (N,).

        A box whose clipped sides are not both at least MIN_SIDE is not shown.
        """
        scale = np.array([self.resized[1] / self.size[1], self.resized[0] / self.size[0]] * 2)
        placed = (boxes * scale - np.array([self.left, self.top] * 2)).clip(0, self.side)
        for axis, mirror in enumerate((self.mirror_x, self.mirror_y)):
            if mirror:
                placed[:, axis::2] = self.side - placed[:, axis::2][:, ::-1]
        is_shown = (placed[:, 2:] - placed[:, :2] >= MIN_SIDE).all(axis=1)
        return placed.astype(np.float32), is_shown

    def cut(self, pixels: np.ndarray, region: Rectangle) -> np.ndarray:
        """Return a part of the mirrored square, (height, width, 3); it must be without padding.

        Args:
            pixels: the image of the file, decoded in full or with `reduction`.
            region: of the mirrored square.
        """
        back = self.place(region)
        part = crop_resized(
            pixels,
            back.shifted(self.top, self.left),
            size=self.size,
            resized=self.resized,
        )
        # much faster than a copy from a reversed view; 1: left-right, 0: up-down
        part = cv2.flip(part, 1) if self.mirror_x else part
        return cv2.flip(part, 0) if self.mirror_y else part


def sample_view(
    size: tuple[int, int], config: AugmentConfig, *, rng: np.random.Generator
) -> SquareView:
    """Sample scale, window and mirrors of an image; uses five numbers of `rng` with any config.

    Args:
        size: (height, width) of the file.
        config: its `large_scale_jitter` must be set.
        rng: source of the random numbers.
    """
    assert config.large_scale_jitter is not None, "no view without large-scale jitter"
    side, (low, high) = config.large_scale_jitter.size, config.large_scale_jitter.scale
    scale, down, right, flip, vertical_flip = rng.random(5).tolist()
    factor = (low + (high - low) * scale) * side / max(size)
    resized = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    # one of all windows, each with the same probability; 0 where the image is not larger
    top, left = (
        int(place * (max(0, length - side) + 1))
        for place, length in zip((down, right), resized, strict=True)
    )
    return SquareView(
        size=size,
        resized=resized,
        top=top,
        left=left,
        side=side,
        mirror_x=flip < config.flip_prob,
        mirror_y=vertical_flip < config.vertical_flip_prob,
    )


def crop_resized(
    pixels: np.ndarray, window: Rectangle, *, size: tuple[int, int], resized: tuple[int, int]
) -> np.ndarray:
    """Return a window of a resized image, (height, width, 3), resizing only what it shows.

    The pixels are those of the whole image, resized, but for rounding; see `_PHASES`. A reduced
    JPEG that EXIF rotates may be off by less than a pixel.

    Args:
        pixels: (H, W, 3) uint8, the image decoded in full or smaller by a factor of `REDUCTIONS`.
        window: of the resized image.
        size: (height, width) of the full image.
        resized: (height, width) of the whole image after the resize.
    """
    decoded = pixels.shape[0], pixels.shape[1]
    # of decoded pixels: a reduced image is size / reduction, rounded up
    reduction = next(r for r in REDUCTIONS if decoded == (-(-size[0] // r), -(-size[1] // r)))
    rows, columns = (
        _Span.of(shown, length=decoded[axis], scale=(reduction * resized[axis], size[axis]))
        for axis, shown in enumerate(((window.top, window.bottom), (window.left, window.right)))
    )
    method = resize_method(decoded, resized)
    part = pixels[rows.first : rows.end, columns.first : columns.end]
    sizes = tuple(round(span.factor * (span.end - span.first)) for span in (rows, columns))
    if sizes == part.shape[:2] and decoded != resized:
        # OpenCV would return a copy, because the rounded sizes are equal
        return cv2.resize(pixels, resized[::-1], interpolation=method)[window.slices]
    part = cv2.resize(
        part,
        None,  # else the factors would be those of the crop, whose size is rounded
        fx=columns.factor,
        fy=rows.factor,
        interpolation=method,
    )
    cropped: np.ndarray = part[rows.offset :, columns.offset :][: window.height, : window.width]
    return cropped


@dataclass(frozen=True)
class _Span:
    """Pixels along an axis that contain a window of the resized image.

    first, end: the first pixel and the one after the last. factor: of the resize. offset: of the
    window in these pixels after their resize.
    """

    first: int
    end: int
    factor: float
    offset: int

    @classmethod
    def of(cls, window: tuple[int, int], *, length: int, scale: tuple[int, int]) -> "_Span":
        """Return the shortest span that begins on the grid of the resized image.

        Args:
            window: begin and end, in pixels of the resized image.
            length: number of pixels of the axis before the resize.
            scale: numerator and denominator of the factor.
        """
        factor = scale[0] / scale[1]
        # Linear interpolation reads one more pixel on both sides.
        latest = max(0, math.floor(window[0] / factor) - 1)
        end = min(length, math.ceil(window[1] / factor) + 1)
        # Pixel x begins at x * factor of the resized image, which is a whole number but for
        # phase / scale[1]. Take the last x where this is near 0 or 1; it is 0 for x = 0.
        candidates = np.arange(latest, -1, -1)
        phase = candidates * scale[0] % scale[1]
        is_near = np.minimum(phase, scale[1] - phase) * _PHASES <= min(scale)
        first = int(candidates[is_near.argmax()])
        return cls(first, end, factor, window[0] - round(first * factor))
