"""Image folder dataset: one sub-folder per class, as in ImageNet.

N images, B images in a batch, K classes. Paths and labels are kept in flat arrays, which worker
processes share after a fork. A list of a million Python objects would be copied by each worker,
because reading an object changes its reference count.
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from backbones.bad_images import bad_image_error
from backbones.classification.config import ClassificationConfig, DecodePlace
from backbones.classification.encoded import (
    EncodedBatch,
    EncodedSample,
    collate_encoded,
    read_sample,
    undecoded_note,
)
from backbones.classification.structures import ClassificationBatch
from backbones.classification.transforms import EvaluationTransform, TrainingTransform, augment
from backbones.device_jpeg import require_decoder
from backbones.images import (
    SUFFIXES,
    BadImageError,
    bit_depth_note,
    images_in,
    list_folder,
    read_file,
    read_size,
)
from engine.checksum import digest_of
from engine.errors import UserError
from engine.paths import is_folder
from engine.schema import BadInputPolicy

NAMES_SHOWN = 10  # class names listed in a note
_LOOKED_AT = 100
"""About how many files are looked at, to say how many are not decoded on the device."""


@dataclass(frozen=True)
class ClassificationSample:
    """One augmented or resized image, as `load` returns it.

    pixels: (H, W, 3) uint8 RGB. label: 0..K-1. image_id: index in the dataset. seed: random seed of
    this sample, also used for random choices on the device.
    """

    pixels: np.ndarray
    label: int
    image_id: int
    seed: int


class FolderDataset:
    """Images of one split and their classes; implements `engine.task.DataSet`.

    A class is a sub-folder. Its images are the files with a suffix in `SUFFIXES`, at any depth.
    Images are sorted by class, then by path. Hidden files and folders are skipped.

    class_names: by label. notes: log lines about skipped files. groups: (N,) int64, one number for
    each output shape of `transform`.

    Args:
        folder: contains a folder for each class.
        transform: turns a file's bytes into network input.
        class_names: the training classes, for a validation split; a class without images gives a
            note. None (training) takes the folder names, sorted; each must contain an image.
        on_bad_image: stop the run at an image that cannot be decoded, or skip it.
        decode: `data.decode`, for training images only.

    Raises:
        UserError: the folder is missing, or has no classes or no images; a class has no images, or
            is not a training class; the images are decoded on the device without torchcodec.
    """

    def __init__(
        self,
        folder: Path,
        *,
        transform: TrainingTransform | EvaluationTransform,
        class_names: Sequence[str] | None = None,
        on_bad_image: BadInputPolicy = "error",
        decode: DecodePlace = "workers",
    ) -> None:
        if decode == "device":
            require_decoder()
        self._decode = decode
        self._folder = folder
        self._transform = transform
        self._on_bad_image = on_bad_image
        found, num_others = _find_classes(folder)
        self.class_names = tuple(found if class_names is None else class_names)
        for name in found:
            if name not in self.class_names:
                near = difflib.get_close_matches(name, self.class_names, n=1, cutoff=0.0)[0]
                raise UserError(
                    f"{folder / name}: expected a class of the training split (the nearest is "
                    f"{near}), got an unknown class"
                )
        counts = np.zeros(len(self.class_names), dtype=np.int64)
        paths: list[bytes] = []
        for label, name in enumerate(self.class_names):
            inside, others = images_in(folder / name) if name in found else ([], 0)
            if not inside and class_names is None:
                raise UserError(
                    f"{folder / name}: expected images of the class ({' '.join(SUFFIXES)}), "
                    "got none"
                )
            counts[label] = len(inside)
            paths += [os.fsencode(path) for path in inside]
            num_others += others
        if not paths:
            raise UserError(f"{folder}: expected images in it, got empty classes")
        # (N,) fixed-width bytes, relative to the class folder
        self._paths = np.array(paths)
        self._labels = np.repeat(np.arange(len(counts)), counts)
        self.notes = tuple(self._lines(counts, num_others))
        if class_names is None:  # only for training; validation images are most likely the same
            depth = bit_depth_note(folder / self.file_name(index) for index in range(len(self)))
            self.notes += (depth,) if depth else ()
        if decode == "device":
            looked_at = range(0, len(self), max(1, len(self) // _LOOKED_AT))
            note = undecoded_note([folder / self.file_name(index) for index in looked_at])
            self.notes += (note,) if note else ()
        self.groups = np.zeros(len(paths), dtype=np.int64)
        if isinstance(transform, EvaluationTransform) and not transform.has_one_shape:
            self.groups = self._shape_groups(transform)

    @classmethod
    def training(cls, config: ClassificationConfig) -> Self:
        """Return the training split, `data.root`/train, with the config's augmentation.

        Raises:
            UserError: see the class.
        """
        return cls(
            _split_folder(config, "train"),
            transform=TrainingTransform(config.augment),
            on_bad_image=config.data.on_bad_image,
            decode=config.data.decode,
        )

    @classmethod
    def validation(cls, config: ClassificationConfig, class_names: Sequence[str]) -> Self:
        """Return the validation split, `data.root`/val, with the config's test-time views.

        class_names: the training classes, by label.

        Raises:
            UserError: see the class.
        """
        return cls(
            _split_folder(config, "val"),
            transform=EvaluationTransform(config.evaluation),
            class_names=class_names,
            on_bad_image=config.data.on_bad_image,
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    @cached_property
    def digest(self) -> str:
        """Checksum of the images' paths and classes."""
        return digest_of([self._paths, self._labels])

    def file_name(self, index: int) -> str:
        """Return the path of image `index`, relative to the split's folder."""
        name = self.class_names[self._labels[index]]
        return f"{name}/{os.fsdecode(self._paths[index])}"

    def load(self, index: int, seed: int, batch_shape: None = None) -> Any:
        """Read image `index`; all random choices depend only on `seed`.

        Returns:
            A ClassificationSample; an EncodedSample of an image that is decoded on the device.

        Raises:
            UserError: the image is missing, or it is bad and `on_bad_image` is error.
            SkippedSampleError: the image is bad and `on_bad_image` is skip.
        """
        path, label = self._folder / self.file_name(index), int(self._labels[index])
        transform = self._transform
        try:
            if isinstance(transform, EvaluationTransform):
                pixels = transform(read_file(path), path, seed=seed)
            elif self._decode == "device":
                return read_sample(path, transform, label=label, image_id=index, seed=seed)
            else:
                pixels = augment(*transform.crop_file(path, seed=seed))
        except BadImageError as error:
            raise bad_image_error(error, self._on_bad_image) from error
        return ClassificationSample(pixels, label, image_id=index, seed=seed)

    def batch_shape(self, sample_keys: Sequence[tuple[int, int]]) -> None:
        """Return None: all images of a group have one shape."""

    def collate(
        self, samples: Sequence[Any], batch_shape: Any = None
    ) -> ClassificationBatch | EncodedBatch:
        """Make a batch of at least one sample, all of one shape; pixels are channels last."""
        if isinstance(samples[0], EncodedSample):
            assert isinstance(self._transform, TrainingTransform)
            return collate_encoded(samples, side=self._transform.side)
        pixels = np.stack([sample.pixels for sample in samples])
        return ClassificationBatch(
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            labels=torch.tensor([sample.label for sample in samples]),
            image_ids=torch.tensor([sample.image_id for sample in samples]),
            seeds=torch.tensor([sample.seed for sample in samples]),
        )

    def _lines(self, counts: np.ndarray, num_others: int) -> list[str]:
        lines = []
        if num_others:
            lines.append(f"{self._folder}: {num_others} files that are not images were skipped")
        missing = [self.class_names[label] for label in np.flatnonzero(counts == 0)]
        if missing:
            more = len(missing) - NAMES_SHOWN
            names = ", ".join(missing[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
            lines.append(
                f"{self._folder}: {len(missing)} of {len(counts)} classes have no image and are "
                f"not in the metrics: {names}"
            )
        return lines

    def _shape_groups(self, transform: EvaluationTransform) -> np.ndarray:
        """Return (N,) int64, one group number for each output shape of `transform`."""
        shapes = np.zeros((len(self), 2), dtype=np.int64)
        for index in range(len(self)):
            try:
                shapes[index] = transform.output_size(
                    read_size(self._folder / self.file_name(index))
                )
            except BadImageError:
                if self._on_bad_image == "error":
                    raise
                # its shape stays (0, 0); `load` will skip it
        groups: np.ndarray = np.unique(shapes, axis=0, return_inverse=True)[1]
        return groups


def _split_folder(config: ClassificationConfig, split: str) -> Path:
    root = Path(config.data.root)
    if not config.data.root or not is_folder(root):
        got = "no such folder" if config.data.root else "nothing"
        raise UserError(f"data.root {root}: expected the folder with train/ and val/, got {got}")
    folder = root / split
    if not is_folder(folder):
        raise UserError(f"{folder}: expected a folder for each class in it, got no such folder")
    return folder


def _find_classes(folder: Path) -> tuple[list[str], int]:
    """Return the sorted names of the class folders, and the number of files beside them.

    Raises:
        UserError: there is no class folder, the folder cannot be read, or a name is not UTF-8.
    """
    folders, files = list_folder(str(folder))
    if not folders:
        raise UserError(
            f"{folder}: expected a folder for each class in it, got none (files: {len(files)})"
        )
    foreign = sorted(os.fsencode(name) for name in folders if not _is_text(name))
    if foreign:
        # class names are written into checkpoints and scores, which are UTF-8
        raise UserError(
            f"{folder}: expected class folders with names in UTF-8, got {len(foreign)} others, the "
            f"first {foreign[0]!r}; rename them (for example with convmv)"
        )
    return sorted(folders), len(files)


def _is_text(name: str) -> bool:
    """Return whether a file name is UTF-8: Python decodes other bytes to lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
