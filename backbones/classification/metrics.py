"""Metrics of a classifier: top-1 and top-5 accuracy, log loss, calibration error, confusion matrix.

N images, K classes, T = min(5, K) best labels of an image.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from backbones.classification.structures import ClassificationBatch
from backbones.classification.visualize import draw_confusion
from backbones.score_tables import pairs_table
from engine.errors import UserError
from engine.files import write_file
from engine.run_files import SCORES_FILE

MAX_DRAWN = 50
"""Largest number of classes for which confusion.png is drawn."""
MAX_LISTED = 100
"""Largest number of classes for which the console lists each class."""
NUM_CONFUSIONS = 10
"""Number of most frequent confusions shown on the console."""

_BEST = 5  # labels kept per image, for top-5
_PERCENT = {
    "top1": "top-1",
    "top5": "top-5",
    "top1_error": "top-1 error",
    "top5_error": "top-5 error",
    "calibration_error": "calibration error",
}


@dataclass(frozen=True)
class PredictionRecords:
    """Predictions for N images, reduced to what the metrics need.

    image_ids: (N,) int64. labels: (N,) int64, the true classes. best: (N, T) int32, labels by
    falling probability, ties by rising label. confidences: (N,) float32, probability of the best
    label. losses: (N,) float32, -log of the true label's probability.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    best: np.ndarray
    confidences: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class ClassificationScore:
    """Result of one evaluation.

    metrics: `top1`, `top5` (the true label is among the T best) and their `_error`s in [0, 1];
    `nll_loss`, mean negative log-likelihood in nats; `calibration_error` in [0, 1]; `num_images`;
    `top1/<class>` for each class with images. confusion: (K, K) int64 counts, true class by
    predicted class. class_names: by label.
    """

    metrics: dict[str, float]
    confusion: np.ndarray
    class_names: tuple[str, ...]

    def table(self) -> Group:
        """Return the console tables: metrics, accuracy by class, most frequent confusions."""
        title = f"classification of {self.metrics['num_images']} images, in percent"
        cells = [(name, f"{100 * self.metrics[key]:.2f}") for key, name in _PERCENT.items()]
        parts = [
            pairs_table(title, [*cells, ("log loss (nats)", f"{self.metrics['nll_loss']:.3f}")])
        ]
        if len(self.class_names) <= MAX_LISTED:
            accuracies = {name: self.metrics.get(f"top1/{name}") for name in self.class_names}
            cells = [
                (escape(name), "-" if value is None else f"{100 * value:.1f}")
                for name, value in sorted(accuracies.items())
            ]
            parts.append(pairs_table("top-1 by class, in percent", cells))
        worst = self.worst_confusions()
        if worst:
            parts.append(_confusion_table(worst))
        return Group(*parts)

    def worst_confusions(self) -> list[tuple[str, str, int]]:
        """Return (true, predicted, count) of the most frequent errors, at most NUM_CONFUSIONS."""
        # without the diagonal, which counts correct predictions
        errors = self.confusion * ~np.eye(len(self.class_names), dtype=bool)
        places = np.argsort(-errors, axis=None, kind="stable")[:NUM_CONFUSIONS]
        cells = zip(*np.unravel_index(places, errors.shape), strict=True)
        names = self.class_names
        return [(names[i], names[j], int(errors[i, j])) for i, j in cells if errors[i, j]]

    def write(self, directory: Path) -> None:
        """Write metrics.json, confusion.csv, and confusion.png for up to MAX_DRAWN classes.

        Raises:
            UserError: a file cannot be written.
        """
        text = json.dumps(self.metrics, indent=2, ensure_ascii=False)
        write_file(directory / SCORES_FILE, f"{text}\n")
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["true / predicted", *self.class_names])
        for name, counts in zip(self.class_names, self.confusion.tolist(), strict=True):
            writer.writerow([name, *counts])
        write_file(directory / "confusion.csv", table.getvalue())
        if len(self.class_names) <= MAX_DRAWN:
            drawing = draw_confusion(self.confusion, self.class_names)
            _, png = cv2.imencode(".png", cv2.cvtColor(drawing, cv2.COLOR_RGB2BGR))
            write_file(directory / "confusion.png", png.tobytes())


class ClassificationEvaluator:
    """Collects predictions for a validation set, in any order, and computes the metrics.

    The predictions may come from any number of processes.

    Args:
        class_names: by label, all different.
        num_bins: number of bins of the calibration error.
    """

    main_metric = "top1"

    def __init__(self, class_names: Sequence[str], *, num_bins: int = 15) -> None:
        assert len(set(class_names)) == len(class_names), "class names must differ"
        self._class_names = tuple(class_names)
        self._num_bins = num_bins
        self._collected: list[PredictionRecords] = []
        self._score: ClassificationScore | None = None

    def update(self, batch: ClassificationBatch, predictions: Sequence[Tensor]) -> None:
        """Add one batch.

        Args:
            batch: at least one image.
            predictions: (K,) float32 probabilities on the CPU for each image of the batch, in
                order. NaN counts as 0, so that a diverged network is scored too.
        """
        probabilities = np.nan_to_num(torch.stack(list(predictions)).numpy(), nan=0.0)
        expected = (len(batch), len(self._class_names))
        assert probabilities.shape == expected, f"expected {expected}, got {probabilities.shape}"
        labels = batch.labels.cpu().numpy()
        # stable sort of the negative: ties keep the lower label first
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :_BEST]
        of_label = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
        # an underflowed probability of 0 would make the mean loss infinite
        losses = -np.log(np.maximum(of_label, np.finfo(np.float32).tiny))
        self._collected.append(
            PredictionRecords(
                image_ids=batch.image_ids.cpu().numpy(),
                labels=labels,
                best=best.astype(np.int32),
                confidences=probabilities.max(axis=1),
                losses=losses,
            )
        )

    def state(self) -> list[PredictionRecords]:
        """Return the predictions collected by this process, one element per batch."""
        return self._collected

    def compute(self, states: Sequence[list[PredictionRecords]]) -> dict[str, float]:
        """Return the metrics over all states; see `ClassificationScore.metrics`.

        Raises:
            UserError: there are no images.
        """
        records = merge_records([part for state in states for part in state])
        num_classes = len(self._class_names)
        # flat index of each image's cell in the confusion matrix
        cells = records.labels * num_classes + records.best[:, 0]
        counts = np.bincount(cells, minlength=num_classes**2)
        confusion = counts.reshape(num_classes, num_classes)
        hits = records.best == records.labels[:, None]  # (N, T), at most one True in a row
        top1, top5 = float(hits[:, 0].mean()), float(hits.any(axis=1).mean())
        metrics: dict[str, float] = {
            "top1": top1,
            "top5": top5,
            "top1_error": 1 - top1,
            "top5_error": 1 - top5,
            "nll_loss": float(records.losses.mean(dtype=np.float64)),
            "calibration_error": calibration_error(
                records.confidences, hits[:, 0], num_bins=self._num_bins
            ),
            "num_images": len(records.labels),
        }
        per_class = zip(self._class_names, np.diag(confusion), confusion.sum(axis=1), strict=True)
        metrics |= {f"top1/{name}": float(right / all_) for name, right, all_ in per_class if all_}
        self._score = ClassificationScore(metrics, confusion, self._class_names)
        return metrics

    def write(self, directory: Path) -> None:
        """Write metrics.json, confusion.csv, and confusion.png for up to MAX_DRAWN classes."""
        self._scored().write(directory)

    def table(self) -> Group:
        """Return the console tables: metrics, accuracy by class, most frequent confusions."""
        return self._scored().table()

    def _scored(self) -> ClassificationScore:
        assert self._score is not None, "compute() comes first"
        return self._score


def calibration_error(confidences: np.ndarray, correct: np.ndarray, *, num_bins: int) -> float:
    """Return the expected calibration error, in [0, 1].

    Guo et al. 2017, *On Calibration of Modern Neural Networks*, equation 3: the mean over bins of
    equal width, ((m - 1) / M, m / M], of the difference between the bin's accuracy and its mean
    confidence, weighted by the number of images in the bin.

    Args:
        confidences: (N,) probabilities of the predicted labels, N of at least 1.
        correct: (N,) bool, whether the predicted label is the true one.
        num_bins: M, at least 1.
    """
    # inner edges; side="left" puts a confidence equal to an edge into the bin below, ((m-1)/M, m/M]
    edges = np.arange(1, num_bins) / num_bins
    bins = np.searchsorted(edges, confidences.astype(np.float64), side="left")
    # the bin's count cancels: count / N * |sum of correct / count - sum of confidence / count|
    gaps = np.bincount(bins, weights=correct - confidences.astype(np.float64))
    return float(np.abs(gaps).sum() / len(confidences))


def merge_records(parts: Sequence[PredictionRecords]) -> PredictionRecords:
    """Concatenate all records, sorted by image id.

    The fixed order makes sums round the same for any number of processes.

    Raises:
        UserError: there are none.
    """
    if not parts:
        raise UserError("evaluation: expected at least one validation image, got none")
    image_ids = np.concatenate([part.image_ids for part in parts])
    order = np.argsort(image_ids)
    unique = len(np.unique(image_ids))
    assert unique == len(image_ids), f"{len(image_ids) - unique} images occur more than once"
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])[order]
        for field in fields(PredictionRecords)
    }
    return PredictionRecords(**columns)


def _confusion_table(confusions: Sequence[tuple[str, str, int]]) -> Table:
    table = Table("true", "predicted", title="most frequent confusions")
    table.add_column("images", justify="right")
    for true, predicted, count in confusions:
        table.add_row(escape(true), escape(predicted), str(count))
    return table
