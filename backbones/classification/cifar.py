"""CIFAR-10 and CIFAR-100 datasets, held in memory as one array.

A batch is one indexing operation on that array. N images, B images in a batch. torchvision reads
the files and checks their MD5.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from backbones.classification.config import DataConfig
from backbones.classification.structures import ClassificationBatch
from engine.errors import UserError

ARCHIVES: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
HOLDOUT_SEED = 0
"""Seed of the random choice of held-out images; fixed, so that all runs hold out the same ones."""


class CifarDataset:
    """CIFAR images and their classes; implements `engine.task.DataSet`.

    pixels: (N, 32, 32, 3) uint8 RGB. labels: (N,) int64. class_names: by label. notes: lines for
    the log.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        *,
        class_names: Sequence[str],
        notes: Sequence[str] = (),
    ) -> None:
        # torchvision's array is a transposed view, channels first in memory; batches would keep it
        self.pixels, self.labels = np.ascontiguousarray(pixels), labels
        self.class_names, self.notes = tuple(class_names), tuple(notes)

    @classmethod
    def training(cls, config: DataConfig) -> Self:
        """Read the training images, without the `config.holdout` held-out ones.

        Raises:
            UserError: the files are missing, damaged or cannot be downloaded; or all images would
                be held out.
        """
        images = _read(config, train=True)
        if config.holdout >= len(images.data):
            raise UserError(
                f"data.holdout: expected less than {len(images.data)}, got {config.holdout}"
            )
        rows = _held_out(len(images.data), config.holdout)
        notes = [f"{config.holdout} training images are held out for validation"]
        return cls._of(images, ~rows, notes if config.holdout else [])

    @classmethod
    def validation(cls, config: DataConfig) -> Self:
        """Read the test images, or the held-out training images if `config.holdout` is set.

        Raises:
            UserError: the files are missing, damaged or cannot be downloaded.
        """
        images = _read(config, train=config.holdout > 0)
        count = len(images.data)
        rows = _held_out(count, config.holdout) if config.holdout else np.ones(count, bool)
        return cls._of(images, rows, [])

    @classmethod
    def _of(cls, images: CIFAR10, rows: np.ndarray, notes: Sequence[str]) -> Self:
        labels = np.asarray(images.targets, dtype=np.int64)
        return cls(images.data[rows], labels[rows], class_names=images.classes, notes=notes)

    @property
    def groups(self) -> np.ndarray:
        """(N,) int64 zeros: all images have one shape."""
        return np.zeros(len(self.labels), dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def load(self, index: int, seed: int, batch_shape: None = None) -> tuple[int, int]:
        """Return (index, seed) unchanged; `collate` reads the whole batch from the array."""
        return index, seed

    def batch_shape(self, sample_keys: Sequence[tuple[int, int]]) -> None:
        """Return None: all images have one shape."""

    def collate(
        self, samples: Sequence[tuple[int, int]], batch_shape: Any = None
    ) -> ClassificationBatch:
        """Make a batch from at least one (index, seed), with pixels channels last in memory."""
        rows, seeds = np.array(samples, dtype=np.int64).T
        return ClassificationBatch(
            pixels=torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2),
            labels=torch.from_numpy(self.labels[rows]),
            image_ids=torch.from_numpy(rows.copy()),
            seeds=torch.from_numpy(seeds.copy()),
        )


def _held_out(count: int, holdout: int) -> np.ndarray:
    """Return (count,) bool, true for `holdout` randomly chosen images."""
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(HOLDOUT_SEED).permutation(count)[:holdout]] = True
    return chosen


def _read(config: DataConfig, *, train: bool) -> CIFAR10:
    archive = ARCHIVES[config.kind]
    try:
        return archive(config.root, train=train, download=config.download)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"data.root {config.root}: expected {archive.base_folder}/ in torchvision's layout "
            f"(data.root={config.root} data.download=true downloads it), got: "
            f"{str(error).splitlines()[0]}"
        ) from error
