"""Prediction with a trained detector: load it from a run and detect objects in images.

Images are paths, (H, W, 3) uint8 RGB arrays, (3, H, W) uint8 RGB tensors, or Pillow images.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from torch import Tensor

from backbones.images import SUFFIXES, BadImageError, images_in, read_image
from backbones.prediction import prepare_for_prediction
from detection.data.collate import Sample, collate_detection, round_up
from detection.data.eval_sizes import EvalSizes
from detection.data.transforms import resize
from detection.inference.graphed import GraphedDetector
from detection.inference.pipeline import InferencePipeline
from detection.inference.trained import TrainedDetector, load_ensemble
from detection.structures import Detections
from engine.backend_settings import backend_settings
from engine.distributed import pick_device
from engine.errors import UserError
from engine.kernels import kernels_kind
from engine.paths import exists, is_folder
from engine.precision import autocast

if TYPE_CHECKING:
    from PIL.Image import Image

ImageInput = Union[np.ndarray, Tensor, "Image", str, Path]
"""An image for a detector: see `Detector.predict`."""


class Detector:
    """Detects objects in images with the same sizes, padding and arithmetic as evaluation.

    It takes over the networks of `trained`, which can then neither be trained nor saved.
    """

    def __init__(
        self, trained: TrainedDetector, *, device: torch.device, cuda_graphs: bool = False
    ) -> None:
        self.class_names = trained.classes.names
        self.category_ids = trained.classes.category_ids
        self.config = trained.config
        self._device = device
        self._sizes = EvalSizes.of(self.config.data, self.config.evaluation)
        for network in trained.networks:
            prepare_for_prediction(network, self.config.loop, device=device)
        pipeline = InferencePipeline(trained.networks, self.config)
        self._predict = (
            GraphedDetector(pipeline, device=device).predict if cuda_graphs else pipeline.predict
        )

    def predict(self, images: Iterable[ImageInput], *, batch_size: int = 4) -> list[Detections]:
        """Return the objects detected in each image, in its own pixels, on the CPU.

        Args:
            images: any number of images of any size, each a path, an (H, W, 3) uint8 RGB array, a
                (3, H, W) uint8 RGB tensor or a Pillow image. Pillow images are rotated by their
                EXIF orientation and converted to RGB, like files.
            batch_size: images in one forward pass; it does not change the result.

        Raises:
            UserError: a file cannot be read, an element is not an image, or `images` is a single
                image instead of a list.
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
        """Yield (index in `images`, detections), in the order in which batches are filled.

        All images of a batch have the same padded shape, so that no result depends on the other
        images. At most `batch_size` images of each shape are held in memory.

        Args:
            images: as for `predict`.
            batch_size: as for `predict`.
            on_bad: called with the reason if an image cannot be used; the image is then skipped.
                None: the error is raised.

        Raises:
            UserError: as for `predict`.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size: expected an integer of at least 1, got {batch_size!r}")
        waiting: defaultdict[tuple[int, ...], list[Sample]] = defaultdict(list)
        for index, image in enumerate(check_iterable(images)):
            try:
                sample = self._sample(index, pixels_of(image, place=index))
            except UserError as error:
                if on_bad is None:
                    raise
                on_bad(str(error))
                continue
            # one waiting list for each padded shape, at all scales
            batch = waiting[self._padded_sides(sample)]
            batch.append(sample)
            if len(batch) == batch_size:
                yield from self._detect(batch)
                batch.clear()
        for batch in waiting.values():  # the batches that were not filled
            if batch:
                yield from self._detect(batch)

    def _padded_sides(self, sample: Sample) -> tuple[int, ...]:
        """Return the sides of a sample's images, padded as in a batch, at all scales."""
        divisor = self.config.data.size_divisor
        shapes = (pixels.shape[:2] for pixels in (sample.pixels, *sample.other_pixels))
        return tuple(round_up(side, divisor) for shape in shapes for side in shape)

    def _sample(self, index: int, pixels: np.ndarray) -> Sample:
        height, width = pixels.shape[:2]
        size = self._sizes.sizes((height, width))[0]
        # A sample without ground truth. The seed is unused, because prediction is not random; the
        # image id is the index in the input.
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

    def _detect(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Detections]]:
        batch = collate_detection(samples, size_divisor=self.config.data.size_divisor)
        batches = [images.to(self._device) for images in batch.at_all_scales]
        loop, device = self.config.loop, self._device
        with (
            torch.inference_mode(),
            backend_settings(loop, device),
            autocast(device, loop.precision),
        ):
            found = self._predict(batches)
        yield from zip((sample.image_id for sample in samples), found, strict=True)


def pixels_of(image: Any, *, place: int) -> np.ndarray:
    """Return an image as a contiguous (H, W, 3) uint8 RGB array.

    Args:
        image: as for `Detector.predict`.
        place: its index, for error messages.

    Raises:
        UserError: a file cannot be read, or the input is not a supported image.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    pixels = image
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            got = f"{tuple(image.shape)} {str(image.dtype).removeprefix('torch.')}"
            raise UserError(f"image {place}: expected a (3, height, width) uint8 tensor, got {got}")
        pixels = image.detach().cpu().permute(1, 2, 0).numpy()
    # checked by name, so that Pillow need not be imported
    elif type(image).__module__.partition(".")[0] == "PIL":
        pixels = _pixels_of_pillow(image, place)
    if not isinstance(pixels, np.ndarray):
        raise UserError(
            f"image {place}: expected a path, an array, a tensor or a Pillow image, got "
            f"{type(image).__name__}"
        )
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        got = f"{pixels.shape} {pixels.dtype}"
        raise UserError(f"image {place}: expected (height, width, 3) uint8 RGB, got {got}")
    return np.ascontiguousarray(pixels)


def _pixels_of_pillow(image: Any, place: int) -> np.ndarray:
    """Return a Pillow image as an (H, W, 3) RGB array, rotated and converted like a file."""
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):  # 16- and 32-bit modes; convert() would clip them
        raise UserError(f"image {place}: expected 8 bits a channel, got Pillow's mode {image.mode}")
    try:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes the file only now
        raise BadImageError(f"image {place}: expected a whole image: {error}") from error


def check_iterable(images: Any) -> Iterable[Any]:
    """Return `images` if it is an iterable of images; raise UserError for a single image."""
    is_single = isinstance(images, str | bytes | Path) or type(images).__module__.startswith("PIL.")
    if is_single or (isinstance(images, np.ndarray | Tensor) and images.ndim < 4):
        raise UserError(
            f"images: expected a list of images, got one {type(images).__name__}; put it into [ ]"
        )
    if not isinstance(images, Iterable):
        raise UserError(f"images: expected a list of images, got {type(images).__name__}")
    return images


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
            shape: for small batches of few shapes, from one thread.

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


@dataclass(frozen=True)
class FoundImages:
    """Image files to predict on.

    paths: the images. problems: a message for each input without images. num_others: number of
    other files in the folders.
    """

    paths: list[Path]
    problems: list[str]
    num_others: int


def find_images(inputs: Iterable[Path], *, skip_folder: Path) -> FoundImages:
    """Return the given files, and the images in the given folders at any depth, sorted by name.

    Args:
        inputs: files and folders. Hidden files and folders inside them are skipped.
        skip_folder: a folder to skip, such as the output folder.

    Raises:
        UserError: no input gives an image; the message is that of the first input.
    """
    found: list[Path] = []
    problems: list[str] = []
    num_others = 0
    for path in inputs:
        try:
            inside, others = _images_of(path, skip_folder=skip_folder)
            found += inside
            num_others += others
        except UserError as error:
            problems.append(str(error))
    if not found:
        raise UserError(problems[0])
    return FoundImages(found, problems, num_others)


def _images_of(path: Path, *, skip_folder: Path) -> tuple[list[Path], int]:
    """Return the images of one input and how many other files it has."""
    if not exists(path):
        raise UserError(f"{path}: no such image or folder")
    if not is_folder(path):
        return [path], 0
    inside, others = images_in(path, skip_folder=skip_folder)
    if not inside:
        raise UserError(
            f"{path}: expected images ({' '.join(SUFFIXES)}) apart from those in {skip_folder}, "
            "got none"
        )
    return [path / name for name in inside], others
