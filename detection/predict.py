"""A trained detector: read from a run, and used on pictures.

N pictures of one batch. Pictures are paths, or (H, W, 3) uint8 RGB arrays.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from backbones.metadata import category_ids_of, class_names_of, config_of
from backbones.pictures import SUFFIXES, BadPictureError, pictures_in, read_image
from backbones.weights import build_loaded
from detection.config import SCHEMAS, DetectionConfig
from detection.data.coco import ClassMap
from detection.data.collate import Sample, collate_detection, round_up
from detection.data.transforms import resize, resized_size
from detection.models.build import build_faster_rcnn
from detection.models.faster_rcnn import FasterRCNN
from detection.structures import Detections
from engine.checkpoint import read_trained
from engine.distributed import pick_device
from engine.errors import UserError
from engine.step import autocast

Picture = np.ndarray | str | Path


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its config, its classes, and the network in eval mode on the CPU."""

    config: DetectionConfig
    classes: ClassMap
    model: FasterRCNN


def load_trained(path: Path | str, overrides: Sequence[str] = ()) -> Trained:
    """Read a run folder (its model.safetensors), a checkpoint or a .safetensors file.

    Args:
        path: the folder or file. Of a checkpoint with averaged weights these are taken.
        overrides: `a.b.c=value`, changes to the config that the file holds.

    Raises:
        UserError: there is no such file, it is damaged, not a detector's, or an override is wrong.
    """
    path, state, metadata = read_trained(Path(path))
    for key in ("config", "class_names", "category_ids"):
        if key not in metadata:
            task = metadata.get("task", "none")
            raise UserError(
                f"{path}: expected a detector's {key} beside its weights, got none (task: {task})"
            )
    config = config_of(metadata, overrides, schemas=SCHEMAS, kind=DetectionConfig, source=path)
    names = class_names_of(metadata, source=path)
    classes = ClassMap(names, category_ids_of(metadata, count=len(names), source=path))
    build = partial(
        build_faster_rcnn,
        config.model,
        num_classes=len(classes),
        size_divisor=config.data.size_divisor,
        with_masks=config.task == "segmentation",
    )
    return Trained(config, classes, build_loaded(build, state, path=path).eval())


class Detector:
    """Finds objects in pictures, as evaluation does: same sizes, same batches, same arithmetic."""

    def __init__(self, trained: Trained, *, device: torch.device) -> None:
        self.class_names = trained.classes.names
        self.category_ids = trained.classes.category_ids
        self.config = trained.config
        self._model = trained.model.to(device)
        self._device = device

    def predict(self, images: Iterable[Picture], *, batch_size: int = 4) -> list[Detections]:
        """Return the objects found in each picture, in its own pixels, on the CPU.

        Args:
            images: paths, or (H, W, 3) uint8 RGB arrays of any sizes; there may be none.
            batch_size: pictures in one forward pass; it changes nothing in the result.

        Raises:
            UserError: a file cannot be read, an array is no such picture, or `images` is one.
        """
        if isinstance(images, str | Path | np.ndarray):
            raise UserError(f"images: expected a list of pictures, got one {type(images).__name__}")
        found = dict(self.stream(images, batch_size=batch_size))
        return [found[index] for index in range(len(found))]

    def stream(
        self,
        images: Iterable[Picture],
        *,
        batch_size: int = 4,
        on_bad: Callable[[str], object] | None = None,
    ) -> Iterator[tuple[int, Detections]]:
        """Yield (place among `images`, objects found), in the order in which batches get full.

        A batch holds pictures of one padded shape, so that none depends on its neighbours. At most
        `batch_size` pictures of each shape are held at once.

        Args:
            images: as for `predict`.
            batch_size: as for `predict`.
            on_bad: told why a file cannot be decoded, which is then left out; None: it is raised.

        Raises:
            UserError: as for `predict`.
        """
        waiting: defaultdict[tuple[int, int], list[Sample]] = defaultdict(list)
        for index, image in enumerate(images):
            try:
                sample = self._sample(index, image)
            except BadPictureError as error:
                if on_bad is None:
                    raise
                on_bad(str(error))
                continue
            height, width = (
                round_up(side, self.config.data.size_divisor) for side in sample.pixels.shape[:2]
            )
            batch = waiting[height, width]
            batch.append(sample)
            if len(batch) == batch_size:
                yield from self._detect(batch)
                batch.clear()
        for batch in waiting.values():
            if batch:
                yield from self._detect(batch)

    def _sample(self, index: int, image: Picture) -> Sample:
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            got = f"{pixels.shape} {pixels.dtype}"
            raise UserError(f"picture {index}: expected (height, width, 3) uint8 RGB, got {got}")
        height, width = pixels.shape[:2]
        data = self.config.data
        size = resized_size((height, width), data.eval_short_side, data.eval_max_side)
        resized, no_boxes = resize(pixels, np.zeros((0, 4), np.float32), size)
        return Sample(
            pixels=resized,
            boxes=no_boxes,
            labels=np.zeros(0, np.int64),
            is_crowd=np.zeros(0, np.bool_),
            original_size=(height, width),
            image_id=index,
            seed=0,
        )

    def _detect(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Detections]]:
        batch = collate_detection(samples, size_divisor=self.config.data.size_divisor)
        images = batch.images.to(self._device)
        with torch.inference_mode(), autocast(self._device, self.config.loop.precision):
            found = self._model.predict(images)
        yield from zip((sample.image_id for sample in samples), found, strict=True)


def load_detector(
    path: str | Path, *, device: str | None = None, overrides: Sequence[str] = ()
) -> Detector:
    """Make a detector from a run folder, a checkpoint or a .safetensors file.

    Args:
        path: as for `load_trained`.
        device: `cpu`, `cuda` or `cuda:N`; None takes a GPU when there is one.
        overrides: as for `load_trained`.

    Raises:
        UserError: bad file, device or override.
    """
    return Detector(load_trained(path, overrides), device=pick_device(device))


def find_pictures(inputs: Iterable[Path], *, apart_from: Path) -> tuple[list[Path], int]:
    """Return files as they are, and of folders the pictures in them, at any depth, by name.

    Args:
        inputs: files and folders, of which hidden content is not looked at.
        apart_from: a folder whose content is left out, such as that of earlier output.

    Returns:
        The paths, and how many files of the folders are no pictures.

    Raises:
        UserError: an input does not exist or cannot be read, or a folder holds no picture.
    """
    found: list[Path] = []
    num_others = 0
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path}: no such picture or folder")
        if path.is_dir():
            inside, others = pictures_in(path, apart_from=apart_from)
            if not inside:
                raise UserError(
                    f"{path}: expected pictures ({' '.join(SUFFIXES)}) apart from those in "
                    f"{apart_from}, got none"
                )
            found += [path / name for name in inside]
            num_others += others
        else:
            found.append(path)
    return found, num_others
