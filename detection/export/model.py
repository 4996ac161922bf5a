"""What a trained model must offer to be exported, and how its file's results are compared."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detection.export.program import ImageSize, Program
from engine.schema import RunConfig

TOLERANCE = 1e-3
"""Largest difference that is allowed of coordinates in pixels, of scores, probabilities, logits and
deltas, and of the share of a mask's pixels."""
Arrays = Mapping[str, np.ndarray]
"""Inputs or outputs of a file, by name."""


@dataclass(frozen=True)
class Differences:
    """Largest differences between a file's results and the model's, for some images.

    values: by name. limits: the largest that are allowed, by the same names. count: number of
    results that were compared.
    """

    values: Mapping[str, float]
    limits: Mapping[str, float]
    count: int

    def are_allowed(self) -> bool:
        """Return whether each difference is within its limit; NaN is not."""
        return all(self.values[name] <= limit for name, limit in self.limits.items())


class ExportedModel(ABC):
    """A trained model that can be exported: its program, and its own results to compare with.

    config: of the run. class_names: by label.
    """

    config: RunConfig
    class_names: Sequence[str]

    @abstractmethod
    def program(self, *, batch: int | None = None, size: ImageSize | None = None) -> Program:
        """Return the program of the file.

        batch: images in a batch; None: any number. size: (height, width) of all images; None: any.
        """

    def metadata(self) -> dict[str, str]:
        """Return what users of the file need to know, as text by key; lists are JSON."""
        return {
            "task": self.config.model_dump()["task"],
            "class_names": json.dumps(list(self.class_names)),
            "config": self.config.model_dump_json(),
        }

    @abstractmethod
    def inputs(self, images: np.ndarray) -> Arrays:
        """Return the file's inputs for images (B, H, W, 3) uint8 RGB."""

    @abstractmethod
    def differences(self, images: np.ndarray, outputs: Arrays) -> Differences:
        """Compare the file's outputs for images (B, H, W, 3) with the model's own results."""
