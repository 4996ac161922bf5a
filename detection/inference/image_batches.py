"""Batches of images for a network: decoded and resized, in threads ahead of it, by padded shape."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from detection.config import DetectionConfig
from detection.data.collate import Sample, round_up
from detection.data.eval_sizes import EvalSizes
from detection.data.transforms import resize
from detection.inference.image_inputs import ImageInput, check_iterable, pixels_of
from engine.device_copies import ahead
from engine.errors import UserError

BATCHES_AHEAD = 2
"""Batches' worth of images that threads read ahead, besides one image for each thread."""
BATCHES_WAITING = 3
"""Batches' worth of images that wait for others of their shape; then the fullest batch goes."""


@dataclass(frozen=True)
class ReadImage:
    """An image as the network takes it, or the error that says why it cannot be used.

    index: of the image in the input. sample: without ground truth. pixels: (H, W, 3) as decoded, if
    they are kept.
    """

    index: int
    sample: Sample | None = None
    pixels: np.ndarray | None = None
    error: UserError | None = None


class ImageReader:
    """Reads images of any kind and groups them, by the sizes and padding of a run's config."""

    def __init__(self, config: DetectionConfig) -> None:
        self._sizes = EvalSizes.of(config.data, config.evaluation)
        self._divisor = config.data.size_divisor

    def batches(
        self, images: Iterable[ImageInput], *, batch_size: int, threads: int, keep_pixels: bool
    ) -> Iterator[list[ReadImage]]:
        """Yield images of one padded shape as a batch, and each that cannot be used by itself.

        Which images share a batch depends on the images that are not yet yielded and their order
        alone. So after any batch, the same call with those images yields the same batches.

        Args:
            images: as for `Detector.predict`.
            batch_size: most images of a batch.
            threads: that read images ahead; 0 reads them when they are asked for.
            keep_pixels: keep each image as decoded, besides its sample.
        """

        def read(numbered: tuple[int, ImageInput]) -> ReadImage:
            return self._read(*numbered, keep_pixels=keep_pixels)

        numbered = iter(enumerate(check_iterable(images)))
        depth = BATCHES_AHEAD * batch_size + threads - 1
        found = (
            ahead(numbered, read, depth=depth, threads=threads) if threads else map(read, numbered)
        )
        # by padded sides at all scales; in the order of the first image of each
        waiting: dict[tuple[int, ...], list[ReadImage]] = {}
        for image in found:
            if image.sample is None:
                yield [image]
                continue
            waiting.setdefault(self._padded_sides(image.sample), []).append(image)
            fullest = max(waiting, key=lambda sides: len(waiting[sides]))
            is_full = len(waiting[fullest]) == batch_size
            if is_full or sum(map(len, waiting.values())) == BATCHES_WAITING * batch_size:
                yield waiting.pop(fullest)
        yield from waiting.values()

    def _read(self, index: int, image: ImageInput, *, keep_pixels: bool) -> ReadImage:
        try:
            pixels = pixels_of(image, place=index)
            sample = self._sample(index, pixels)
        except UserError as error:
            return ReadImage(index, error=error)
        except (cv2.error, MemoryError) as error:
            reason = " ".join(str(error).split()) or "not enough memory"
            what = f"image {index}" if isinstance(image, np.ndarray) else str(image)
            return ReadImage(index, error=UserError(f"{what}: cannot be resized: {reason}"))
        return ReadImage(index, sample, pixels if keep_pixels else None)

    def _sample(self, index: int, pixels: np.ndarray) -> Sample:
        height, width = pixels.shape[:2]
        size = self._sizes.sizes((height, width))[0]
        # The seed is unused, because prediction is not random; the image id is the index.
        resized, no_boxes = resize(pixels, np.zeros((0, 4), np.float32), size)
        return Sample(
            pixels=resized,
            boxes=no_boxes,
            labels=np.zeros(0, np.int64),
            is_crowd=np.zeros(0, np.bool_),
            original_size=(height, width),
            image_id=index,
            seed=0,
            other_pixels=self._sizes.other_pixels(pixels),
        )

    def _padded_sides(self, sample: Sample) -> tuple[int, ...]:
        """Return the sides of a sample's images, padded as in a batch, at all scales."""
        shapes = (pixels.shape[:2] for pixels in (sample.pixels, *sample.other_pixels))
        return tuple(round_up(side, self._divisor) for shape in shapes for side in shape)
