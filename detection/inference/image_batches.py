"""Batches of images for a network: decoded and resized, in threads ahead of it, by padded shape."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from detection.config import DetectionConfig
from detection.data.collate import Sample, round_up
from detection.data.eval_sizes import EvalSizes
from detection.data.transforms import resize
from detection.inference.image_inputs import ImageInput, check_iterable, pixels_of
from engine.device_copies import ahead
from engine.errors import UserError
from engine.text import one_line

BATCHES_AHEAD = 2
"""Batches' worth of images that threads read ahead, besides one image for each thread."""
BYTES_AHEAD = 2**28
"""Most memory of the images that are read ahead, if all are like the last one; but at least one is
read ahead, whatever its size."""
BATCHES_WAITING = 3
"""Batches' worth of images that wait for others of their shape; then the fullest batch goes."""


@dataclass(frozen=True)
class ReadingOptions:
    """How images are read and grouped.

    batch_size: most images of a batch. threads: that read images ahead; 0 reads them when they are
    asked for. keep_pixels: keep each image as decoded, besides its sample. only_read: called with
    (height, width) of an image; if true, the image is kept as decoded, without a sample.
    """

    batch_size: int
    threads: int = 0
    keep_pixels: bool = False
    only_read: Callable[[tuple[int, int]], bool] | None = None


@dataclass(frozen=True)
class ReadImage:
    """An image as the network takes it, or the error that says why it cannot be used.

    index: of the image in the input. name: its path, or `image 3`. sample: without ground truth.
    pixels: (H, W, 3) as decoded, if they are kept. An image that is only read has no sample.
    """

    index: int
    name: str
    sample: Sample | None = None
    pixels: np.ndarray | None = None
    error: UserError | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the pixels."""
        sample = [] if self.sample is None else [self.sample.pixels, *self.sample.other_pixels]
        decoded = [] if self.pixels is None else [self.pixels]
        return sum(pixels.nbytes for pixels in (*sample, *decoded))


class ImageReader:
    """Reads images of any kind and groups them, by the sizes and padding of a run's config."""

    def __init__(self, config: DetectionConfig) -> None:
        self._sizes = EvalSizes.of(config.data, config.evaluation)
        self._divisor = config.data.size_divisor

    def batches(
        self, images: Iterable[ImageInput], options: ReadingOptions
    ) -> Iterator[list[ReadImage]]:
        """Yield images of one padded shape as a batch, and by itself each without a sample.

        Which images share a batch depends on the images that are not yet yielded and their order
        alone. So after any batch, the same call with those images yields the same batches.

        images: as for `Detector.predict`.
        """
        batch_size, threads = options.batch_size, options.threads

        def read(numbered: tuple[int, ImageInput]) -> ReadImage:
            return self._read(*numbered, options)

        def depth_after(image: ReadImage) -> int:
            return BYTES_AHEAD // max(1, image.num_bytes)

        numbered = iter(enumerate(check_iterable(images)))
        depth = BATCHES_AHEAD * batch_size + threads - 1
        found = (
            ahead(numbered, read, depth=depth, threads=threads, depth_after=depth_after)
            if threads
            else map(read, numbered)
        )
        # by padded sides at all scales; in the order of the first image of each
        waiting: dict[tuple[int, ...], list[ReadImage]] = {}
        for image in found:
            if image.sample is None:
                yield [image]
                del image  # before the next one is read: it may be large
                continue
            waiting.setdefault(self._padded_sides(image.sample), []).append(image)
            fullest = max(waiting, key=lambda sides: len(waiting[sides]))
            is_full = len(waiting[fullest]) == batch_size
            if is_full or sum(map(len, waiting.values())) == BATCHES_WAITING * batch_size:
                yield waiting.pop(fullest)
        yield from waiting.values()

    def _read(self, index: int, image: ImageInput, options: ReadingOptions) -> ReadImage:
        name = str(image) if isinstance(image, str | Path) else f"image {index}"
        try:
            pixels = pixels_of(image, place=index)
            height, width = pixels.shape[:2]
            if options.only_read is not None and options.only_read((height, width)):
                return ReadImage(index, name, pixels=pixels)
            sample = self._sample(index, pixels)
        except UserError as error:
            return ReadImage(index, name, error=error)
        except (cv2.error, MemoryError) as error:
            reason = one_line(error) or "not enough memory"
            return ReadImage(index, name, error=UserError(f"{name}: cannot be resized: {reason}"))
        return ReadImage(index, name, sample, pixels if options.keep_pixels else None)

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
