"""The one seam between the loop and the problem."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn


class Batch(Protocol):
    """What a data set's `collate` makes: moves to a device, and can say which images it holds."""

    @property
    def image_ids(self) -> Tensor:
        """(B,) int64, on the CPU or the device."""
        ...

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Return the batch with every tensor on `device`."""
        ...

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...


class DataSet(Protocol):
    """Images and their truth, read one by one in worker processes."""

    @property
    def groups(self) -> np.ndarray:
        """(N,) int64: images of one group may share a batch (aspect ratio, padded shape)."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def load(self, index: int, seed: int, frame: Any = None) -> Any:
        """Read image `index`; its randomness comes from `seed` and its batch's `frame`.

        Raises:
            UserError: the image or its truth is bad and the policy is to stop.
            SkippedSampleError: the same, and the policy is to skip and count.
        """
        ...

    def frame(self, draws: Sequence[tuple[int, int]]) -> Any:
        """Return what all parts of a batch must agree on, such as the padded shape.

        It depends on the draws alone. Evaluation has none.

        Args:
            draws: (index, seed) of every image of the global batch.
        """
        ...

    def collate(self, samples: Sequence[Any], frame: Any = None) -> Batch:
        """Make one batch of at least one sample, in at least this frame."""
        ...


class Evaluator(Protocol):
    """Gathers predictions and scores them."""

    main_metric: str
    """Key of `compute()` by which checkpoints are ranked; higher is better."""

    def update(self, batch: Any, predictions: Sequence[Any]) -> None:
        """Add one batch's predictions."""
        ...

    def state(self) -> Any:
        """Return what was gathered, picklable, to be merged with other processes' states."""
        ...

    def compute(self, states: Sequence[Any]) -> dict[str, float]:
        """Score the union of the states of all processes (called on the main process alone)."""
        ...

    def write(self, directory: Path) -> None:
        """Write result files and tables after `compute`."""
        ...

    def table(self) -> Any:
        """Return what the console shows after `compute`: something that rich can print."""
        ...


@runtime_checkable
class HasDigest(Protocol):
    """A data set of which a resumed run can tell whether it is the one that it began with."""

    @property
    def digest(self) -> str:
        """A checksum of file names and truth, in the order in which they are read."""
        ...


@runtime_checkable
class CountsParts(Protocol):
    """A task whose losses divide by a count that is known after the sampling alone.

    Where a step is computed in parts, each would divide by its own.
    """

    def with_counts(self, parts: Sequence[Any]) -> list[Any]:
        """Return the parts of a step, each with what its losses divide by (without gradients)."""
        ...


@runtime_checkable
class Task(Protocol):
    """A problem that the engine can train and evaluate. Implementations are `nn.Module`s."""

    @property
    def model(self) -> nn.Module:
        """What is trained, averaged, saved and exported."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        ...

    def losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return named scalar losses; their sum is minimised.

        A value without gradient is a measurement: it is logged beside them and not minimised.
        """
        ...

    def predict(self, batch: Any) -> list[Any]:
        """Return one prediction for each image, on the CPU."""
        ...

    def train_data(self) -> DataSet:
        """Return the training images."""
        ...

    def val_data(self) -> DataSet:
        """Return the validation images."""
        ...

    def evaluator(self, *, final: bool = True) -> Evaluator:
        """Return a fresh evaluator of the validation images.

        Args:
            final: whether its numbers are to be reported, or only steer a training, for which a
                faster way to the same numbers will do.
        """
        ...

    def metadata(self) -> dict[str, str]:
        """Return what is stored beside the weights: class names, category ids, config."""
        ...

    def notes(self) -> list[str]:
        """Return lines for the start of training: origin of the weights, toll of the filters."""
        ...

    def draw(self, batch: Any, predictions: Sequence[Any]) -> list[np.ndarray]:
        """Draw predictions beside the truth: (H, W, 3) uint8 RGB for each image of the batch."""
        ...
