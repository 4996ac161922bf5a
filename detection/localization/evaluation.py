"""Localization error of ILSVRC: a prediction is correct if its class and its box are correct.

A box is correct if its IoU with any box of the image's class is at least 0.5 (Russakovsky et al.
2015, section 4.2: an overlap below 0.5 is an error). N images, G ground-truth boxes and T predicted
boxes of one image, K classes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Group
from rich.markup import escape
from torch import Tensor

from backbones.classification.metrics import MAX_LISTED
from backbones.score_tables import pairs_table
from detection.ops.boxes import box_iou
from detection.structures import DetectionBatch, Detections
from engine.errors import UserError
from engine.files import write_file
from engine.run_files import SCORES_FILE

IOU_THRESH = 0.5
# titles of the metrics that the table shows, in percent
_TITLES = {
    "localization_error": "error, class given",
    "mean_iou": "mean IoU, class given",
    "top5_localization_error": "error, best of five",
    "top1_localization_error": "error, best class",
    "baseline_localization_error": "error of the mean box",
    "baseline_mean_iou": "mean IoU of the mean box",
}


@dataclass(frozen=True)
class Localization:
    """Predicted boxes of one image, in original pixels, on the CPU.

    given: the box predicted for the annotated class. predicted: the boxes of the classes that a
    classifier predicts, by falling class probability, which is their score; empty without a
    classifier.
    """

    given: Detections
    predicted: Detections


@dataclass(frozen=True)
class ImageResult:
    """The scores and boxes of one image, as plain values to merge over processes and to write.

    iou, baseline_iou: highest IoU with a ground-truth box, of the box predicted for the annotated
    class and of the mean box. is_correct: for each predicted class, whether class and box are
    correct; empty without a classifier. rows: (label, score, x1, y1, x2, y2) of the annotated
    class, then of the predicted classes.
    """

    image_id: int
    label: int
    iou: float
    baseline_iou: float
    is_correct: tuple[bool, ...]
    rows: tuple[tuple[float, ...], ...]


class LocalizationEvaluator:
    """Collects the predictions of a validation set, in any order, and scores them.

    Args:
        class_names: by label, unique.
        descriptions: readable class names for the table, by label.
        mean_box: (4,) the mean box of the training set, xyxy as fractions of the image's sides: the
            baseline, scored like the network's boxes.
        file_name: function from an image id to the path of the image.
    """

    main_metric = "localization_accuracy"

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        descriptions: Sequence[str],
        mean_box: Sequence[float],
        file_name: Callable[[int], str],
    ) -> None:
        self._class_names = tuple(class_names)
        self._descriptions = tuple(descriptions)
        self._mean_box = torch.tensor(mean_box, dtype=torch.float32)
        self._file_name = file_name
        self._results: list[ImageResult] = []
        self._metrics: dict[str, float] = {}

    def update(self, batch: DetectionBatch, predictions: Sequence[Localization]) -> None:
        """Add one batch with a `Localization` per image, in the order of the batch."""
        images, targets = batch.images.to(torch.device("cpu")), batch.targets
        sides = images.original_sizes.flip(1).repeat(1, 2)  # (B, 4) width, height, width, height
        # from network-input to original pixels
        scale = sides / images.sizes.flip(1).repeat(1, 2)
        for row, found in enumerate(predictions):
            gt_boxes = targets.boxes[row][targets.valid[row]].cpu() * scale[row]
            label = int(targets.labels[row, 0])  # all boxes of an image have the same class
            predicted = found.predicted
            is_correct = best_iou(gt_boxes, predicted.boxes) >= IOU_THRESH
            is_correct &= predicted.labels == label
            self._results.append(
                ImageResult(
                    image_id=int(images.image_ids[row]),
                    label=label,
                    iou=float(best_iou(gt_boxes, found.given.boxes)[0]),
                    baseline_iou=float(best_iou(gt_boxes, self._mean_box[None] * sides[row])[0]),
                    is_correct=tuple(is_correct.tolist()),
                    rows=tuple(_rows(found.given) + _rows(predicted)),
                )
            )

    def state(self) -> list[ImageResult]:
        """Return the results of this process."""
        return self._results

    def compute(self, states: Sequence[list[ImageResult]]) -> dict[str, float]:
        """Score the union of the states of all processes.

        Returns:
            `localization_accuracy`, `localization_error` and `mean_iou` of the annotated class;
            `baseline_localization_error` and `baseline_mean_iou` of the mean box; `num_images`;
            `localization_accuracy/<class>`. With a classifier also `top5_localization_error` (any
            of the five predicted classes is correct) and `top1_localization_error`. All except
            `num_images` are in [0, 1].

        Raises:
            UserError: there are no images.
        """
        unsorted = (result for state in states for result in state)
        # sorted, so that sums and files do not depend on the number of processes
        results = sorted(unsorted, key=lambda result: result.image_id)
        if not results:
            raise UserError("evaluation: expected at least one validation image, got none")
        ids = [result.image_id for result in results]
        assert len(set(ids)) == len(ids), "some images were evaluated more than once"
        self._results = results
        ious = np.array([result.iou for result in results])
        baseline = np.array([result.baseline_iou for result in results])
        is_correct = ious >= IOU_THRESH
        metrics = {
            "localization_accuracy": float(is_correct.mean()),
            "localization_error": float(1 - is_correct.mean()),
            "mean_iou": float(ious.mean()),
            "baseline_localization_error": float(np.mean(baseline < IOU_THRESH)),
            "baseline_mean_iou": float(baseline.mean()),
            "num_images": len(results),
        }
        if results[0].is_correct:  # with a classifier: predicted classes by falling probability
            top5_accuracy = float(np.mean([any(result.is_correct) for result in results]))
            top1_accuracy = float(np.mean([result.is_correct[0] for result in results]))
            metrics["top5_localization_error"] = 1 - top5_accuracy
            metrics["top1_localization_error"] = 1 - top1_accuracy
        labels = np.array([result.label for result in results])
        for label in np.unique(labels):
            name = f"localization_accuracy/{self._class_names[label]}"
            metrics[name] = float(is_correct[labels == label].mean())
        self._metrics = metrics
        return metrics

    def write(self, directory: Path) -> None:
        """Write metrics.json, and localizations.json with the predicted boxes of every image."""
        text = json.dumps(self._metrics, indent=2, ensure_ascii=False)
        write_file(directory / SCORES_FILE, f"{text}\n")
        rows = []
        for result in self._results:
            given, *predicted = [self._to_json(row) for row in result.rows]
            image = {"image": self._file_name(result.image_id), "iou": round(result.iou, 4)}
            rows.append(json.dumps(image | {"given": given, "predicted": predicted}))
        write_file(directory / "localizations.json", "[{}]\n".format(",\n".join(rows)))

    def table(self) -> Group:
        """Return tables: the metrics with the baseline's, and the error of each class."""
        metrics = self._metrics
        shown = {key: title for key, title in _TITLES.items() if key in metrics}
        cells = [(title, f"{100 * metrics[key]:.1f}") for key, title in shown.items()]
        title = f"localization in {metrics['num_images']} images, in percent"
        parts = [pairs_table(title, cells)]
        if len(self._class_names) <= MAX_LISTED:
            keys = [f"localization_accuracy/{name}" for name in self._class_names]
            cells = [
                (escape(name), f"{100 * (1 - metrics[key]):.1f}" if key in metrics else "-")
                for name, key in zip(self._descriptions, keys, strict=True)
            ]
            parts.append(pairs_table("error by class, class given, in percent", cells))
        return Group(*parts)

    def _to_json(self, row: Sequence[float]) -> dict[str, object]:
        label, score, *box = row
        rounded = [round(value, 2) for value in box]
        return {"class": self._class_names[int(label)], "score": round(score, 5), "box": rounded}


def best_iou(gt_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Return (T,), the highest IoU of each of `boxes` (T, 4) with `gt_boxes` (G, 4), G >= 1."""
    return box_iou(gt_boxes, boxes).amax(dim=0)


def _rows(found: Detections) -> list[tuple[float, ...]]:
    columns = [found.labels[:, None], found.scores[:, None], found.boxes]
    return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]
