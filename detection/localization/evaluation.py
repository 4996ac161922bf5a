"""The localization error of ILSVRC: an answer is right when class and box are.

A box is right when its IoU with some box of the image's class is at least 0.5 (Russakovsky et
al. 2015, section 4.2: an error is an overlap below it). N images, K classes, T answers of one.
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

from backbones.classification.metrics import MAX_LISTED, pairs_table
from detection.ops.boxes import box_iou
from detection.structures import DetectionBatch, Detections
from engine.errors import UserError
from engine.files import write_file

IOU_THRESH = 0.5
_PERCENT = {
    "localization_error": "error, class given",
    "mean_iou": "mean IoU, class given",
    "top5_localization_error": "error, best of five",
    "top1_localization_error": "error, best class",
    "baseline_localization_error": "error of the mean box",
    "baseline_mean_iou": "mean IoU of the mean box",
}


@dataclass(frozen=True)
class Localization:
    """What was found in one image, in original pixels, on the CPU.

    given: the box of the class that the image has. predicted: boxes of the classes that a
    classifier gives it, by falling probability, which is the score; empty without a classifier.
    """

    given: Detections
    predicted: Detections


@dataclass(frozen=True)
class Answer:
    """How one image was answered, ready to be merged and written.

    iou, baseline_iou: of the given class's box and of the mean box with the best of the image's
    boxes. right: for each predicted class, whether class and box are right; empty without any.
    answers: label, score and x1, y1, x2, y2, first of the given class, then of the predicted ones.
    """

    image_id: int
    label: int
    iou: float
    baseline_iou: float
    right: tuple[bool, ...]
    answers: tuple[tuple[float, ...], ...]


class LocalizationEvaluator:
    """Gathers answers for a validation set, in any order and over any number of processes.

    Args:
        class_names: by label, each different.
        words: what is shown for each class.
        mean_box: (4,) the mean box of the training set, in shares of an image: the baseline, which
            is scored as the network's answers are.
        file_name: path of an image by its id.
    """

    main_metric = "localization_accuracy"

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        words: Sequence[str],
        mean_box: Sequence[float],
        file_name: Callable[[int], str],
    ) -> None:
        self._class_names = tuple(class_names)
        self._words = tuple(words)
        self._mean_box = torch.tensor(mean_box, dtype=torch.float32)
        self._file_name = file_name
        self._gathered: list[Answer] = []
        self._metrics: dict[str, float] = {}

    def update(self, batch: DetectionBatch, predictions: Sequence[Localization]) -> None:
        """Add one batch: a `Localization` for each of its images, in order."""
        images, targets = batch.images.to(torch.device("cpu")), batch.targets
        sides = images.original_sizes.flip(1).repeat(1, 2)
        scale = sides / images.sizes.flip(1).repeat(1, 2)
        for row, found in enumerate(predictions):
            gt_boxes = targets.boxes[row][targets.valid[row]].cpu() * scale[row]
            label = int(targets.labels[row, 0])
            predicted = found.predicted
            right = best_iou(gt_boxes, predicted.boxes) >= IOU_THRESH
            right &= predicted.labels == label
            self._gathered.append(
                Answer(
                    image_id=int(images.image_ids[row]),
                    label=label,
                    iou=float(best_iou(gt_boxes, found.given.boxes)[0]),
                    baseline_iou=float(best_iou(gt_boxes, self._mean_box[None] * sides[row])[0]),
                    right=tuple(right.tolist()),
                    answers=tuple(_rows(found.given) + _rows(predicted)),
                )
            )

    def state(self) -> list[Answer]:
        """Return what this process has gathered."""
        return self._gathered

    def compute(self, states: Sequence[list[Answer]]) -> dict[str, float]:
        """Score the union of the states.

        Returns:
            `localization_accuracy` and `localization_error` with the class given, `mean_iou` of
            its boxes; `baseline_localization_error` and `baseline_mean_iou` of the mean box;
            `num_images`; `localization_accuracy/<class>`. With a classifier also
            `top5_localization_error` (best of five) and `top1_localization_error`. All in [0, 1].

        Raises:
            UserError: there is no image.
        """
        everything = (answer for state in states for answer in state)
        answers = sorted(everything, key=lambda answer: answer.image_id)
        if not answers:
            raise UserError("evaluation: expected at least one validation image, got none")
        ids = [answer.image_id for answer in answers]
        assert len(set(ids)) == len(ids), "some images more than once"
        self._gathered = answers
        ious = np.array([answer.iou for answer in answers])
        baseline = np.array([answer.baseline_iou for answer in answers])
        right = ious >= IOU_THRESH
        metrics = {
            "localization_accuracy": float(right.mean()),
            "localization_error": float(1 - right.mean()),
            "mean_iou": float(ious.mean()),
            "baseline_localization_error": float(np.mean(baseline < IOU_THRESH)),
            "baseline_mean_iou": float(baseline.mean()),
            "num_images": len(answers),
        }
        if answers[0].right:
            best_of_all = float(np.mean([any(answer.right) for answer in answers]))
            best_class = float(np.mean([answer.right[0] for answer in answers]))
            metrics["top5_localization_error"] = 1 - best_of_all
            metrics["top1_localization_error"] = 1 - best_class
        labels = np.array([answer.label for answer in answers])
        for label in np.unique(labels):
            name = f"localization_accuracy/{self._class_names[label]}"
            metrics[name] = float(right[labels == label].mean())
        self._metrics = metrics
        return metrics

    def write(self, directory: Path) -> None:
        """Write metrics.json, and localizations.json with the answers for every image."""
        text = json.dumps(self._metrics, indent=2, ensure_ascii=False)
        write_file(directory / "metrics.json", f"{text}\n")
        rows = []
        for answer in self._gathered:
            given, *predicted = [self._named(each) for each in answer.answers]
            image = {"image": self._file_name(answer.image_id), "iou": round(answer.iou, 4)}
            rows.append(json.dumps(image | {"given": given, "predicted": predicted}))
        write_file(directory / "localizations.json", "[{}]\n".format(",\n".join(rows)))

    def table(self) -> Group:
        """Return the numbers beside the baseline's, and the error of each class."""
        metrics = self._metrics
        shown = {key: title for key, title in _PERCENT.items() if key in metrics}
        cells = [(title, f"{100 * metrics[key]:.1f}") for key, title in shown.items()]
        title = f"localization in {metrics['num_images']} images, in percent"
        parts = [pairs_table(title, cells)]
        if len(self._class_names) <= MAX_LISTED:
            keys = [f"localization_accuracy/{name}" for name in self._class_names]
            cells = [
                (escape(word), f"{100 * (1 - metrics[key]):.1f}" if key in metrics else "-")
                for word, key in zip(self._words, keys, strict=True)
            ]
            parts.append(pairs_table("error by class, class given, in percent", cells))
        return Group(*parts)

    def _named(self, answer: Sequence[float]) -> dict[str, object]:
        label, score, *box = answer
        rounded = [round(value, 2) for value in box]
        return {"class": self._class_names[int(label)], "score": round(score, 5), "box": rounded}


def best_iou(gt_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Return for each of `boxes` (T, 4) its IoU with the nearest of `gt_boxes` (G, 4), G >= 1."""
    return box_iou(gt_boxes, boxes).amax(dim=0)


def _rows(found: Detections) -> list[tuple[float, ...]]:
    columns = [found.labels[:, None], found.scores[:, None], found.boxes]
    return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]
