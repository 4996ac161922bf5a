"""A minimal task, linear regression, that implements the Task protocol."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import SkippedSampleError


@dataclass(frozen=True)
class ToyBatch:
    """A batch of rows. inputs: (B, 3). outputs: (B, 1). image_ids: (B,) int64."""

    inputs: Tensor
    outputs: Tensor
    image_ids: Tensor

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Move inputs and outputs; the ids stay on the CPU."""
        return replace(self, inputs=self.inputs.to(device), outputs=self.outputs.to(device))

    def pin_memory(self) -> Self:
        """Return the batch unchanged."""
        return self

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.inputs)


class ToyData:
    """Random rows that depend on the sample seed alone.

    poison: indices of rows that are NaN. bad: indices of rows that are skipped.
    """

    def __init__(
        self, count: int = 24, *, poison: Sequence[int] = (), bad: Sequence[int] = ()
    ) -> None:
        self.groups = np.arange(count) % 2
        self.poison, self.bad = poison, bad

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.groups)

    def load(self, index: int, seed: int, batch_shape: None = None) -> tuple[int, Tensor]:
        """Return the index and (3,) inputs; NaN for poisoned rows.

        Raises:
            SkippedSampleError: the row is bad.
        """
        if index in self.bad:
            raise SkippedSampleError(f"row {index} is bad")
        row = torch.randn(3, generator=torch.Generator().manual_seed(seed % 2**31))
        return index, row * (float("nan") if index in self.poison else 1.0)

    def batch_shape(self, sample_keys: Sequence[tuple[int, int]]) -> None:
        """Return None: rows have a fixed shape."""

    def collate(self, samples: Sequence[tuple[int, Tensor]], batch_shape: None = None) -> ToyBatch:
        """Stack rows; the outputs are a linear function of the inputs."""
        inputs = torch.stack([row for _, row in samples])
        outputs = inputs @ torch.tensor([[1.0], [-2.0], [0.5]])
        return ToyBatch(inputs, outputs, torch.tensor([index for index, _ in samples]))


class ToyEvaluator:
    """Counts rows and averages the squared error; a higher `score` is better."""

    main_metric = "score"

    def __init__(self) -> None:
        self.rows: list[tuple[int, float]] = []

    def update(self, batch: ToyBatch, predictions: Sequence[Any]) -> None:
        """Add rows."""
        errors = [
            float((p - o) ** 2) for p, o in zip(predictions, batch.outputs[:, 0], strict=True)
        ]
        self.rows += zip(batch.image_ids.tolist(), errors, strict=True)

    def state(self) -> list[tuple[int, float]]:
        """Return the rows."""
        return self.rows

    def compute(self, states: Sequence[list[tuple[int, float]]]) -> dict[str, float]:
        """Score all rows."""
        rows = sorted(row for state in states for row in state)
        self.metrics = {"score": self.score(rows), "num_rows": len(rows)}
        return self.metrics

    def score(self, rows: Sequence[tuple[int, float]]) -> float:
        """Return the main metric."""
        return -sum(error for _, error in rows) / len(rows)

    def write(self, directory: Path) -> None:
        """Write metrics.json."""
        (directory / "metrics.json").write_text(json.dumps(self.metrics))

    def table(self) -> str:
        """Return a text instead of a table."""
        return "toy table"


class ToyTask(nn.Module):
    """Linear regression."""

    class_names: tuple[str, ...] = ("plane",)

    def __init__(self, data: ToyData | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(3, 1)
        self.data = data or ToyData()
        self.final_flags: list[bool] = []

    def losses(self, batch: ToyBatch) -> dict[str, Tensor]:
        """Return the mean squared error and a small penalty."""
        error = (self.model(batch.inputs) - batch.outputs).square().mean()
        sizes = [parameter.square().sum() for parameter in self.model.parameters()]
        return {"square": error, "penalty": 1e-3 * torch.stack(sizes).sum()}

    def predict(self, batch: ToyBatch) -> list[float]:
        """Return the fitted values."""
        values: list[float] = self.model(batch.inputs)[:, 0].tolist()
        return values

    def train_data(self) -> ToyData:
        """Return the rows."""
        return self.data

    def val_data(self) -> ToyData:
        """Return fewer rows."""
        return ToyData(9)

    def evaluator(self, *, final: bool = True) -> ToyEvaluator:
        """Return a new evaluator, and record the flag."""
        self.final_flags.append(final)
        return ToyEvaluator()

    def metadata(self) -> dict[str, str]:
        """Return class names."""
        return {"class_names": '["plane"]'}

    def notes(self) -> list[str]:
        """Return one note."""
        return ["toy data are made up"]

    def draw(self, batch: ToyBatch, predictions: Sequence[Any]) -> list[np.ndarray]:
        """Draw grey squares."""
        return [np.full((8, 8, 3), 128, dtype=np.uint8) for _ in predictions]
