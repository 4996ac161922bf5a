"""The Task protocol: what a problem implements so that the engine can train and evaluate it.

B images in a batch, N images in a data set. The engine knows tasks only through these protocols.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn


class Batch(Protocol):
    """A batch from a data set's `collate`: it moves to a device and names its images."""

    @property
    def image_ids(self) -> Tensor:
        """Image ids, (B,) int64, on the CPU or the device."""
        ...

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "Batch":
        """Return the batch with every tensor on `device`; what is encoded is decoded there."""
        ...

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, for asynchronous copies to a GPU."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...


class DataSet(Protocol):
    """Images and their annotations, read one by one in worker processes."""

    @property
    def groups(self) -> np.ndarray:
        """Group of each image, (N,) int64; a batch holds images of one group.

        Groups keep images of similar aspect ratio, or of one padded shape, together.
        """
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def load(self, index: int, seed: int, batch_shape: Any = None) -> Any:
        """Read image `index`. Its augmentation depends on `seed` and `batch_shape` alone.

        Args:
            index: in 0..N-1.
            seed: of the random augmentation.
            batch_shape: what `self.batch_shape` returned for the global batch; None in evaluation.

        Returns:
            One sample for `collate`.

        Raises:
            UserError: the image or its annotation is bad and the policy is to stop.
            SkippedSampleError: the image or its annotation is bad and the policy is to skip it.
        """
        ...

    def batch_shape(self, sample_keys: Sequence[tuple[int, int]]) -> Any:
        """Return the padded shape that all parts of a global training batch share.

        It depends on `sample_keys` alone, so every process computes the same one without
        communication. None if batches need no common shape. Not called in evaluation.

        Args:
            sample_keys: (index, seed) of every image of the global batch.
        """
        ...

    def collate(self, samples: Sequence[Any], batch_shape: Any = None) -> Batch:
        """Make one batch of at least one sample, padded to at least `batch_shape` (None: any)."""
        ...


class Evaluator(Protocol):
    """Collects predictions and scores them."""

    main_metric: str
    """Key of `compute()` by which checkpoints are ranked; higher is better."""

    def update(self, batch: Any, predictions: Sequence[Any]) -> None:
        """Add one batch's predictions."""
        ...

    def state(self) -> Any:
        """Return the collected predictions, picklable; `compute` merges all processes' states."""
        ...

    def compute(self, states: Sequence[Any]) -> dict[str, float]:
        """Score the merged states of all processes and return metrics by name.

        Called on the main process only.
        """
        ...

    def write(self, directory: Path) -> None:
        """Write result files and tables into `directory`; called after `compute`.

        Raises:
            UserError: a file cannot be written.
        """
        ...

    def table(self) -> Any:
        """Return the table of scores for the console, printable by rich; called after `compute`."""
        ...


@runtime_checkable
class HasDigest(Protocol):
    """A data set with a checksum, so that a resumed run can detect changed data."""

    @property
    def digest(self) -> str:
        """Checksum of file names and annotations, in reading order."""
        ...


@runtime_checkable
class HasRepeatFactors(Protocol):
    """A data set in which some images occur more often in a training epoch than others."""

    @property
    def repeat_factors(self) -> np.ndarray | None:
        """Mean number of times that each image occurs in an epoch, (N,) float64, at least 1.

        None if each image occurs once.
        """
        ...


@runtime_checkable
class SharesLossCounts(Protocol):
    """A task whose losses are divided by a count that is known only after sampling.

    With `loop.accumulate` above 1, each part of a step would otherwise divide by its own count,
    and the gradient would differ from that of the whole batch.
    """

    def with_counts(self, parts: Sequence[Any]) -> list[Any]:
        """Return the parts of a step, each with the count that its losses are divided by.

        Called without gradients.
        """
        ...


@runtime_checkable
class VariesInSize(Protocol):
    """A task whose batches differ in size from step to step, for `loop.compile`."""

    def varying_dims(self, batch: Any) -> Iterable[tuple[Tensor, int]]:
        """Return the tensors of a batch and their dimensions that differ between batches.

        One compiled graph serves all their sizes.
        """
        ...


@runtime_checkable
class HasStages(Protocol):
    """A network of stages, part of a task's model, for `optim.layer_decay`."""

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """Return the modules of each stage, the first stage first.

        Not the layers behind the last stage, which belong to the heads.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """A problem that the engine trains and evaluates. Implementations are `nn.Module`s."""

    @property
    def model(self) -> nn.Module:
        """The network that is trained, averaged, saved and exported."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, indexed by label 0..K-1."""
        ...

    def losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return named scalar losses; the sum of those with a gradient is minimised.

        A value without a gradient is a measurement: it is logged and not minimised.
        """
        ...

    def predict(self, batch: Any) -> list[Any]:
        """Return one prediction per image, on the CPU."""
        ...

    def train_data(self) -> DataSet:
        """Return the training data set."""
        ...

    def val_data(self) -> DataSet:
        """Return the validation data set."""
        ...

    def evaluator(self, *, final: bool = True) -> Evaluator:
        """Return a new evaluator for the validation images.

        Args:
            final: True for scores that are reported. False for scores that only steer training,
                where a faster implementation with the same results may be used.
        """
        ...

    def metadata(self) -> dict[str, str]:
        """Return the text stored with the weights: class names, category ids, config."""
        ...

    def notes(self) -> list[str]:
        """Return log lines for the start of training.

        For example where the weights come from, and how many images the filters removed.
        """
        ...

    def draw(self, batch: Any, predictions: Sequence[Any]) -> list[np.ndarray]:
        """Draw predictions next to the ground truth.

        Returns:
            (H, W, 3) uint8 RGB for each image of the batch.
        """
        ...
