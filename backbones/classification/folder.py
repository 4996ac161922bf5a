"""Pictures in a folder with one sub-folder for each class, ImageNet's layout.

N pictures, B of one batch, K classes. Paths and labels are held in flat arrays, whose pages worker
processes share, and not in lists of a million objects, which each worker would copy by looking.
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

from backbones.bad_images import error_for
from backbones.classification.config import ClassificationConfig
from backbones.classification.structures import LabelledBatch
from backbones.classification.transforms import EvaluationView, TrainingView
from backbones.images import (
    SUFFIXES,
    BadPictureError,
    bit_depth_note,
    list_folder,
    pictures_in,
    read_file,
    read_size,
)
from engine.checksum import digest_of
from engine.errors import UserError
from engine.paths import is_folder
from engine.schema import BadInputPolicy

NAMES_SHOWN = 10  # of the classes that a note is about


@dataclass(frozen=True)
class LabelledPicture:
    """One picture as the network sees it.

    pixels: (H, W, 3) uint8 RGB. label: 0..K-1. image_id: its place in the data set. seed: its own
    draw, from which random choices on the device come too.
    """

    pixels: np.ndarray
    label: int
    image_id: int
    seed: int


class FolderPictures:
    """Pictures of one split and their classes; implements `engine.task.DataSet`.

    A class is a sub-folder, and its pictures are the files of `SUFFIXES` in it at any depth. They
    are in order of class, then of path. Hidden files and folders are left out.

    class_names: by label. notes: what was left out, lines for the log. groups: (N,) int64, one
    number for each shape in which pictures come out.

    Args:
        folder: holds a folder for each class.
        view: what becomes of a picture.
        class_names: those of training, when this is not training; a class without pictures is
            noted. None takes the folders' names, sorted, and each must hold a picture.
        on_bad_image: whether a picture that cannot be decoded stops the run or is skipped.

    Raises:
        UserError: there is no such folder, no class, no picture, a class without pictures, or one
            that training does not have.
    """

    def __init__(
        self,
        folder: Path,
        *,
        view: TrainingView | EvaluationView,
        class_names: Sequence[str] | None = None,
        on_bad_image: BadInputPolicy = "error",
    ) -> None:
        self._folder = folder
        self._view = view
        self._on_bad_image = on_bad_image
        found, num_others = _find_classes(folder)
        self.class_names = tuple(found if class_names is None else class_names)
        for name in found:
            if name not in self.class_names:
                near = difflib.get_close_matches(name, self.class_names, n=1, cutoff=0.0)[0]
                raise UserError(
                    f"{folder / name}: expected a class of training (the nearest is {near}), "
                    "got one that it does not have"
                )
        counts = np.zeros(len(self.class_names), dtype=np.int64)
        paths: list[bytes] = []
        for label, name in enumerate(self.class_names):
            inside, others = pictures_in(folder / name) if name in found else ([], 0)
            if not inside and class_names is None:
                raise UserError(
                    f"{folder / name}: expected pictures of the class ({' '.join(SUFFIXES)}), "
                    "got none"
                )
            counts[label] = len(inside)
            paths += [os.fsencode(path) for path in inside]
            num_others += others
        if not paths:
            raise UserError(f"{folder}: expected pictures in it, got empty classes")
        self._paths = np.array(paths)  # fixed width: (N,) bytes, from the class folder on
        self._labels = np.repeat(np.arange(len(counts)), counts)
        self.notes = tuple(self._lines(counts, num_others))
        if class_names is None:  # said of training; validation is most likely alike
            depth = bit_depth_note(folder / self.file_name(index) for index in range(len(self)))
            self.notes += (depth,) if depth else ()
        self.groups = np.zeros(len(paths), dtype=np.int64)
        if isinstance(view, EvaluationView) and not view.one_shape:
            self.groups = self._shape_groups(view)

    @classmethod
    def training(cls, config: ClassificationConfig) -> Self:
        """Find the pictures under `data.root`/train, augmented as the config says.

        Raises:
            UserError: as for the class; or a value of `augment` is wrong.
        """
        return cls(
            _split_folder(config, "train"),
            view=TrainingView(config.augment),
            on_bad_image=config.data.on_bad_image,
        )

    @classmethod
    def validation(cls, config: ClassificationConfig, class_names: Sequence[str]) -> Self:
        """Find the pictures under `data.root`/val, tested as the config says.

        class_names: those of training, by label.

        Raises:
            UserError: as for the class.
        """
        return cls(
            _split_folder(config, "val"),
            view=EvaluationView(config.evaluation),
            class_names=class_names,
            on_bad_image=config.data.on_bad_image,
        )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._labels)

    @cached_property
    def digest(self) -> str:
        """Checksum of the pictures' paths and classes."""
        return digest_of([self._paths, self._labels])

    def file_name(self, index: int) -> str:
        """Return the path of picture `index` from the folder of the split on."""
        name = self.class_names[self._labels[index]]
        return f"{name}/{os.fsdecode(self._paths[index])}"

    def load(self, index: int, seed: int, frame: None = None) -> LabelledPicture:
        """Read picture `index`; all its randomness comes from `seed`.

        Raises:
            UserError: the picture is missing, or bad and `on_bad_image` is error.
            SkippedSampleError: the picture is bad and `on_bad_image` is skip.
        """
        path = self._folder / self.file_name(index)
        try:
            pixels = self._view(read_file(path), path, seed=seed)
        except BadPictureError as error:
            raise error_for(error, self._on_bad_image) from error
        return LabelledPicture(pixels, int(self._labels[index]), image_id=index, seed=seed)

    def frame(self, draws: Sequence[tuple[int, int]]) -> None:
        """Agree on nothing: pictures of one group have one shape."""

    def collate(self, samples: Sequence[LabelledPicture], frame: Any = None) -> LabelledBatch:
        """Make a batch of at least one sample of one shape, pixels channels last in memory."""
        pixels = np.stack([sample.pixels for sample in samples])
        return LabelledBatch(
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            labels=torch.tensor([sample.label for sample in samples]),
            image_ids=torch.tensor([sample.image_id for sample in samples]),
            seeds=torch.tensor([sample.seed for sample in samples]),
        )

    def _lines(self, counts: np.ndarray, num_others: int) -> list[str]:
        lines = []
        if num_others:
            lines.append(f"{self._folder}: {num_others} files that are no pictures were left out")
        missing = [self.class_names[label] for label in np.flatnonzero(counts == 0)]
        if missing:
            more = len(missing) - NAMES_SHOWN
            names = ", ".join(missing[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
            lines.append(
                f"{self._folder}: {len(missing)} of {len(counts)} classes have no picture and "
                f"count in no metric: {names}"
            )
        return lines

    def _shape_groups(self, view: EvaluationView) -> np.ndarray:
        """Return (N,) int64, one number for each shape in which `view` gives pictures."""
        shapes = np.zeros((len(self), 2), dtype=np.int64)
        for index in range(len(self)):
            try:
                shapes[index] = view.shape_of(read_size(self._folder / self.file_name(index)))
            except BadPictureError:
                if self._on_bad_image == "error":
                    raise
                # stays (0, 0): `load` will skip it
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
    """Return the names of the class folders, sorted, and the number of files beside them.

    Raises:
        UserError: there is none, the folder cannot be read, or a name is not UTF-8.
    """
    folders, files = list_folder(str(folder))
    if not folders:
        raise UserError(
            f"{folder}: expected a folder for each class in it, got none (files: {len(files)})"
        )
    foreign = sorted(os.fsencode(name) for name in folders if not _is_text(name))
    if foreign:
        # a class's name is written into checkpoints and scores, which are UTF-8
        raise UserError(
            f"{folder}: expected class folders with names in UTF-8, got {len(foreign)} others, the "
            f"first {foreign[0]!r}; rename them (convmv does)"
        )
    return sorted(folders), len(files)


def _is_text(name: str) -> bool:
    """Return whether a file's name is UTF-8: Python stands half characters for other bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
