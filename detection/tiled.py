"""Prediction on large images in tiles, with a trained detector."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detection.inference.tiles import Tile, join_tiles, tile_grid
from detection.predict import Detector, ImageInput, check_iterable, pixels_of
from detection.structures import Detections
from engine.errors import UserError

MIN_SIDE = 32
"""Pixels; a smaller tile is a mistake, such as a number of tiles in place of their side."""

OVERLAP = 0.2
"""Of neighbouring tiles, unless another is asked for."""


@dataclass
class _CutImage:
    """An image while its tiles are predicted; `found` has the detections of those that are done.

    tiles: one, or first the whole image and then its tiles.
    """

    index: int
    size: tuple[int, int]
    tiles: list[Tile]
    found: dict[int, Detections] = field(default_factory=dict)


class TiledDetector:
    """Detects objects in tiles of large images and joins the results; else as its `Detector`.

    A tile is resized like any image of its size. An image that fits in one tile is predicted as by
    the detector alone. Of an image only the decoded pixels are held, and the tiles of one batch.

    Args:
        detector: predicts on the tiles.
        tile: (height, width) of a tile, in pixels of the image.
        overlap: smallest overlap of neighbouring tiles, as a fraction of their side in [0, 1).
            An object smaller than it is whole in a tile.
        on_cut: called with one line about each image that is cut: its size and number of tiles.

    Raises:
        UserError: `tile` or `overlap` is out of range.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        tile: tuple[int, int],
        overlap: float = OVERLAP,
        on_cut: Callable[[str], object] | None = None,
    ) -> None:
        if min(tile) < MIN_SIDE:
            raise UserError(f"tile: expected at least {MIN_SIDE} pixels, got {min(tile)}")
        if not 0 <= overlap < 1:
            raise UserError(f"overlap: expected a fraction from 0 to below 1, got {overlap}")
        self.class_names = detector.class_names
        self.category_ids = detector.category_ids
        self.config = detector.config
        self._detector = detector
        self._tile, self._overlap = tile, overlap
        self._on_cut = on_cut

    def predict(self, images: Iterable[ImageInput], *, batch_size: int = 4) -> list[Detections]:
        """Return the objects detected in each image, in its own pixels, as `Detector.predict`.

        There may be more than `model.roi.max_detections` of an image: it limits those of a tile.
        """
        found = dict(self.stream(images, batch_size=batch_size))
        return [found[index] for index in range(len(found))]

    def stream(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int = 4,
        on_bad: Callable[[str], object] | None = None,
    ) -> Iterator[tuple[int, Detections]]:
        """Yield (index in `images`, detections) as images are complete, as `Detector.stream`.

        batch_size: tiles in one forward pass, of one image or several.
        """
        places: dict[int, tuple[_CutImage, int]] = {}  # of the tiles whose detections are missing
        tiles = self._tiles(check_iterable(images), places, on_bad)
        for number, found in self._detector.stream(tiles, batch_size=batch_size):
            image, place = places.pop(number)
            image.found[place] = found
            if len(image.found) == len(image.tiles):
                yield image.index, self._join(image)

    def _tiles(
        self,
        images: Iterable[ImageInput],
        places: dict[int, tuple[_CutImage, int]],
        on_bad: Callable[[str], object] | None,
    ) -> Iterator[np.ndarray]:
        """Yield the pixels of all tiles of all images; note in `places` whose tile each one is."""
        number = 0
        for index, source in enumerate(images):
            try:
                pixels = pixels_of(source, place=index)
            except UserError as error:
                if on_bad is None:
                    raise
                on_bad(str(error))
                continue
            image = self._cut(index, source, pixels)
            for place, tile in enumerate(image.tiles):
                places[number] = (image, place)
                number += 1
                yield _part(pixels, tile)
            del pixels  # before the next image is decoded

    def _cut(self, index: int, source: ImageInput, pixels: np.ndarray) -> _CutImage:
        height, width = pixels.shape[:2]
        tiles = tile_grid((height, width), self._tile, overlap=self._overlap)
        if len(tiles) > 1:
            if self._on_cut is not None:
                name = source if isinstance(source, str | Path) else f"image {index}"
                self._on_cut(f"{name}: {width} x {height} pixels, {len(tiles)} tiles")
            # first, so that nothing holds the last pixels while the next image is decoded
            tiles = [Tile(0, 0, height, width), *tiles]
        return _CutImage(index, (height, width), tiles)

    def _join(self, image: _CutImage) -> Detections:
        found = [image.found[place] for place in range(len(image.tiles))]
        if len(found) == 1:
            return found[0]
        nms_thresh = self.config.model.roi.nms_thresh
        return join_tiles(found, image.tiles, image.size, nms_thresh=nms_thresh)


def _part(pixels: np.ndarray, tile: Tile) -> np.ndarray:
    """Return the pixels of a tile; a copy of a part, so that it does not hold the whole image."""
    top, left, height, width = tile
    part = pixels[top : top + height, left : left + width]
    return pixels if part.shape == pixels.shape else part.copy()


Predictor = Detector | TiledDetector
"""What predicts on images: the same methods and properties."""
