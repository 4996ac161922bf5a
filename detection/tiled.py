"""Prediction on large images in tiles, with a trained detector."""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from detection.inference.image_batches import ReadingOptions
from detection.inference.image_inputs import ImageInput
from detection.inference.tiles import Tile, join_tiles, tile_grid
from detection.predict import Detector, ImageResult, Predictor
from engine.errors import UserError

MIN_SIDE = 32
"""Pixels; a smaller tile is a mistake, such as a number of tiles in place of their side."""

OVERLAP = 0.2
"""Of neighbouring tiles, unless another is asked for."""


class TiledDetector(Predictor):
    """Detects objects in tiles of large images and joins the results; else as its `Detector`.

    A tile is resized like any image of its size. An image that fits in one tile is predicted as by
    the detector alone. There may be more than `model.roi.max_detections` of an image: it limits
    those of a tile.

    Args:
        detector: predicts on the tiles.
        tile: (height, width) of a tile, in pixels of the image.
        overlap: smallest overlap of neighbouring tiles, as a fraction of their side in [0, 1).
            An object smaller than it is whole in a tile.
        on_cut: called with one line about each image that is cut: its size and number of tiles.

    Raises:
        UserError: `tile` is no pair of integers, or `tile` or `overlap` is out of range.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        tile: tuple[int, int],
        overlap: float = OVERLAP,
        on_cut: Callable[[str], object] | None = None,
    ) -> None:
        try:
            height, width = map(operator.index, tile)
        except (TypeError, ValueError) as error:
            raise UserError(f"tile: expected (height, width) in pixels, got {tile!r}") from error
        if min(height, width) < MIN_SIDE:
            raise UserError(f"tile: expected at least {MIN_SIDE} pixels, got {min(height, width)}")
        if not isinstance(overlap, int | float | np.floating) or not 0 <= overlap < 1:
            raise UserError(f"overlap: expected a fraction from 0 to below 1, got {overlap!r}")
        self.class_names = detector.class_names
        self.category_ids = detector.category_ids
        self.config = detector.config
        self._detector = detector
        self._tile, self._overlap = (height, width), overlap
        self._on_cut = on_cut

    def results(
        self, images: Iterable[ImageInput], options: ReadingOptions
    ) -> Iterator[list[ImageResult]]:
        """Yield results as `batches`; those of an image that is cut by itself.

        Of such images the decoded pixels are held, and the tiles of a few batches: see
        `Detector.results`. With threads at least one image more is read ahead. The batch size is
        also that of tiles; a batch has tiles of one image.
        """

        def complete(batch: list[ImageResult]) -> list[ImageResult]:
            (first, *others) = batch
            if others or first.found is not None or first.error is not None:
                return batch
            result = self._in_tiles(first, options)
            return [result if options.keep_pixels else replace(result, pixels=None)]

        def is_cut(size: tuple[int, int]) -> bool:
            return size[0] > self._tile[0] or size[1] > self._tile[1]

        return map(complete, self._detector.results(images, replace(options, only_read=is_cut)))

    def _in_tiles(self, image: ImageResult, options: ReadingOptions) -> ImageResult:
        """Return the result of an image that was only read."""
        assert image.size is not None
        assert image.pixels is not None
        tiles = tile_grid(image.size, self._tile, overlap=self._overlap)
        if self._on_cut is not None:
            height, width = image.size
            self._on_cut(f"{image.name}: {width} x {height} pixels, {len(tiles)} tiles")
        tiles = [Tile(0, 0, *image.size), *tiles]
        parts = (_part(image.pixels, tile) for tile in tiles)
        bad: list[str] = []  # faults of the image; others, such as a full GPU, are raised
        stream = self._detector.stream(
            parts, batch_size=options.batch_size, threads=options.threads, on_bad=bad.append
        )
        found = dict(stream)
        if bad:
            error = UserError(f"{image.name}: a tile: {bad[0]}")
            return replace(image, size=None, pixels=None, error=error)
        in_order = [found[place] for place in range(len(tiles))]
        nms_thresh = self.config.model.roi.nms_thresh
        return replace(image, found=join_tiles(in_order, tiles, image.size, nms_thresh=nms_thresh))


def _part(pixels: np.ndarray, tile: Tile) -> np.ndarray:
    """Return a contiguous view of the whole image, or a copy of a part of it."""
    top, left, height, width = tile
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
