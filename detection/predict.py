"""Prediction with a trained detector: load it from a run and detect objects in images.

Images are paths, (H, W, 3) uint8 RGB arrays, (3, H, W) uint8 RGB tensors, or Pillow images.
"""

import operator
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import torch

from backbones.prediction import prepare_for_prediction
from detection.config import DetectionConfig
from detection.data.collate import Sample, collate_detection
from detection.inference.graphed import GraphedDetector
from detection.inference.image_batches import ImageReader, ReadImage, ReadingOptions
from detection.inference.image_inputs import ImageInput
from detection.inference.pipeline import InferencePipeline
from detection.inference.trained import TrainedDetector, load_ensemble
from detection.structures import Detections
from engine.backend_settings import backend_settings
from engine.distributed import pick_device
from engine.errors import UserError
from engine.kernels import kernels_kind
from engine.precision import autocast

_TURN = threading.Lock()
"""Held while a network runs: the settings of torch's backends belong to the process, not to a
thread, and the CUDA graphs of a detector share their memory."""


@dataclass(frozen=True)
class ImageResult:
    """What was found in an image, or the error that says why it cannot be used.

    index: of the image in the input. name: its path, or `image 3`. size: (height, width) of the
    image. pixels: (H, W, 3) uint8 RGB if they were asked for. An image that cannot be used has
    `error` alone, one that is only read `size` and `pixels`.
    """

    index: int
    name: str
    found: Detections | None = None
    size: tuple[int, int] | None = None
    pixels: np.ndarray | None = None
    error: UserError | None = None


class Predictor(ABC):
    """What predicts on images: a `Detector`, or what wraps one.

    class_names and category_ids: of the classes, by label. config: of the run.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    config: DetectionConfig

    def predict(self, images: Iterable[ImageInput], *, batch_size: int = 4) -> list[Detections]:
        """Return the objects detected in each image, in its own pixels, on the CPU.

        Args:
            images: any number of images of any size, each a path, an (H, W, 3) uint8 RGB array, a
                (3, H, W) uint8 RGB tensor or a Pillow image. Pillow images are rotated by their
                EXIF orientation and converted to RGB, like files.
            batch_size: most images in one forward pass; it changes results by rounding alone.

        Raises:
            UserError: a file cannot be read, an element is not an image, `images` is a single image
                instead of a list, or a batch does not fit in the GPU's memory.
        """
        found = dict(self.stream(images, batch_size=batch_size))
        return [found[index] for index in range(len(found))]

    def stream(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int = 4,
        threads: int = 0,
        on_bad: Callable[[str], object] | None = None,
    ) -> Iterator[tuple[int, Detections]]:
        """Yield (index in `images`, detections), batch by batch; see `batches`.

        Args:
            images: as for `predict`.
            batch_size: as for `predict`.
            threads: as for `batches`.
            on_bad: called with the reason if an image cannot be used; the image is then skipped.
                None: the error is raised.

        Raises:
            UserError: as for `predict`.
        """
        for batch in self.batches(images, batch_size=batch_size, threads=threads):
            for result in batch:
                if result.found is not None:
                    yield result.index, result.found
                    continue
                assert result.error is not None
                if on_bad is None:
                    raise result.error
                on_bad(str(result.error))

    def batches(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int = 4,
        threads: int = 0,
        keep_pixels: bool = False,
    ) -> Iterator[list[ImageResult]]:
        """Yield the results of each batch, and of each image that cannot be used by itself.

        Results depend on the images that are not yet yielded and their order alone. So after any
        batch, the same call with those images yields the same results.

        Args:
            images: as for `predict`; advanced in the caller's thread.
            batch_size: as for `predict`.
            threads: that decode and resize images ahead of the network; 0 does it in between.
            keep_pixels: return the decoded images too.

        Raises:
            UserError: `images` is a single image, a number is not one, or a batch does not fit in
                the GPU's memory.
        """
        options = ReadingOptions(
            batch_size=_count("batch_size", batch_size, least=1),
            threads=_count("threads", threads, least=0),
            keep_pixels=keep_pixels,
        )
        return self.results(images, options)

    @abstractmethod
    def results(
        self, images: Iterable[ImageInput], options: ReadingOptions
    ) -> Iterator[list[ImageResult]]:
        """Yield results as `batches`, which checks the options."""


class Detector(Predictor):
    """Detects objects in images with the same sizes, padding and arithmetic as evaluation.

    It takes over the networks of `trained`, which can then neither be trained nor saved. Several
    threads may call it at once: they read images at the same time, and networks take turns.
    """

    def __init__(
        self, trained: TrainedDetector, *, device: torch.device, cuda_graphs: bool = False
    ) -> None:
        self.class_names = trained.classes.names
        self.category_ids = trained.classes.category_ids
        self.config = trained.config
        self._device = device
        self._reader = ImageReader(self.config)
        for network in trained.networks:
            prepare_for_prediction(network, self.config.loop, device=device)
        pipeline = InferencePipeline(trained.networks, self.config)
        self._predict = (
            GraphedDetector(pipeline, device=device).predict if cuda_graphs else pipeline.predict
        )

    def results(
        self, images: Iterable[ImageInput], options: ReadingOptions
    ) -> Iterator[list[ImageResult]]:
        """Yield results as `batches`.

        All images of a batch have the same padded shape, so that of the others only their number
        changes a result, by rounding. Batches come in the order in which they are filled. At most
        five times `batch_size` images, and one for each thread, are held in memory besides the
        results. An image that is only read (`options.only_read`) is not predicted: its result has
        the decoded image and comes by itself.
        """
        # not in a loop, whose variable would hold a large image too long
        return map(self._of_batch, self._reader.batches(images, options))

    def _of_batch(self, batch: Sequence[ReadImage]) -> list[ImageResult]:
        samples = [image.sample for image in batch if image.sample is not None]
        if samples:
            found = self._detect(samples)
            return [
                ImageResult(image.index, image.name, each, sample.original_size, image.pixels)
                for image, sample, each in zip(batch, samples, found, strict=True)
            ]
        (image,) = batch
        if image.pixels is None:
            return [ImageResult(image.index, image.name, error=image.error)]
        height, width = image.pixels.shape[:2]
        return [ImageResult(image.index, image.name, size=(height, width), pixels=image.pixels)]

    def _detect(self, samples: Sequence[Sample]) -> list[Detections]:
        batch = collate_detection(samples, size_divisor=self.config.data.size_divisor)
        loop, device = self.config.loop, self._device
        with (
            _TURN,
            torch.inference_mode(),
            backend_settings(loop, device),
            autocast(device, loop.precision),
            # an error raised in an `except` would hold what the network has allocated
            suppress(torch.OutOfMemoryError),
        ):
            return self._predict([images.to(device) for images in batch.at_all_scales])
        height, width = max(images.pixels.shape[2:] for images in batch.at_all_scales)
        raise UserError(
            f"{device}: out of memory: expected room for {len(samples)} images of {width} x "
            f"{height} pixels at once; choose a smaller data.eval_short_side (with --tile for "
            "small objects), in Python also a smaller batch_size"
        )


def _count(name: str, value: SupportsIndex, *, least: int) -> int:
    """Return an argument as an int, NumPy's integers too; raise UserError for others."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise UserError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return number


def load_detector(
    path: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device | None = None,
    overrides: Sequence[str] = (),
    cuda_graphs: bool = False,
) -> Detector:
    """Load a detector from a run folder, a checkpoint or a .safetensors file; several: an ensemble.

    No global setting of the process is changed: allocator, number of threads, logging.

    Args:
        path: as for `load_trained`; several form an ensemble (`load_ensemble`).
        device: `cpu`, `cuda` or `cuda:N`; None uses a GPU if there is one.
        overrides: as for `load_trained`.
        cuda_graphs: on a GPU, launch the work of a batch at once, as one CUDA graph for each batch
            shape: for small batches of few shapes.

    Raises:
        UserError: bad file, device or override, CUDA graphs on a CPU, or RESDET_KERNELS is neither
            fast nor reference.
    """
    kernels_kind()  # raises early if RESDET_KERNELS is wrong
    paths = [path] if isinstance(path, str | Path) else path
    if not isinstance(paths, Sequence) or not all(isinstance(each, str | Path) for each in paths):
        raise UserError(f"expected the path of a run, or several, got {type(path).__name__}")
    if isinstance(overrides, str):
        raise UserError(f"overrides: expected a list of key=value, got the text {overrides!r}")
    chosen = pick_device(None if device is None else str(device))
    if cuda_graphs and chosen.type != "cuda":
        raise UserError(f"cuda_graphs: expected a GPU, got the device {chosen}")
    return Detector(load_ensemble(paths, overrides), device=chosen, cuda_graphs=cuda_graphs)
