"""Base class of the two localization tasks: data, loading, prediction and evaluation.

B images, T requested classes per image.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from backbones.metadata import read_numbers, without_writes
from backbones.trained_runs import read_run
from backbones.weights import (
    WeightsReport,
    load_configured_weights,
    network_metadata,
)
from detection.localization.classifier import ImageClassifier
from detection.localization.config import LocalizationBaseConfig
from detection.localization.dataset import LocalizationDataset
from detection.localization.evaluation import Localization, LocalizationEvaluator
from detection.localization.localizer import Localizer
from detection.localization.region_classifier import RegionClassifier
from detection.localization.start_checks import check_localizer
from detection.structures import DetectionBatch, Detections, ImageBatch
from detection.visualize import draw_comparison
from engine.checkpoint import find_weights_file


class LocalizationBaseTask(nn.Module, ABC):
    """Base class of both stages. A subclass adds the network, its losses and `locate`.

    Args:
        config: the run's config.
        model: the network.
        class_names: WordNet ids, by label.
        mean_box: (4,) the mean box of the training set, xyxy as fractions of the image's sides: the
            baseline that results are compared with.

    Raises:
        UserError: `evaluation.classifier` cannot be read or has other classes.
    """

    schema: ClassVar[type[LocalizationBaseConfig]]

    def __init__(
        self,
        config: LocalizationBaseConfig,
        model: Localizer | RegionClassifier,
        class_names: Sequence[str],
        *,
        mean_box: Sequence[float],
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.class_names = tuple(class_names)
        self._mean_box = tuple(float(value) for value in mean_box)
        classifier = config.evaluation.classifier
        self._classifier = None
        if classifier is not None:
            self._classifier = ImageClassifier(Path(classifier), self.class_names)
        self._train_data: LocalizationDataset | None = None
        self._val_data: LocalizationDataset | None = None
        self._loaded: list[WeightsReport] = []

    @staticmethod
    @abstractmethod
    def build(config: Any, *, num_classes: int) -> Localizer | RegionClassifier:
        """Build the network from a config of type `schema`, with random weights."""

    @classmethod
    def for_training(cls, config: LocalizationBaseConfig) -> Self:
        """Read the annotations, build the network for their classes, load pretrained weights.

        Raises:
            UserError: bad data, weights, classifier or first stage, or a config that cannot train.
        """
        check_localizer(config)
        if config.evaluation.classifier is not None:
            # fail now if it is missing: reading ILSVRC's annotations takes minutes
            find_weights_file(Path(config.evaluation.classifier))
        data = LocalizationDataset(config, "train", training=True)
        names = data.images.class_names
        torch.manual_seed(config.seed)
        model = cls.build(config, num_classes=len(names))
        task = cls(config, model, names, mean_box=data.images.mean_box().tolist())
        task._train_data = data
        task.val_data()  # fail now on a mistake there, not after hours of training
        task._loaded += load_configured_weights(model.backbone, config.model.backbone)
        return task

    @classmethod
    def from_run(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Load a trained run in evaluation mode.

        Args:
            path: run folder, checkpoint or .safetensors file.
            overrides: `a.b.c=value`, changes to the config in the file.

        Raises:
            UserError: the file is missing, damaged or of another task, or an override is wrong.
        """
        task = cls.schema.model_fields["task"].default
        run = read_run(
            path,
            overrides,
            schemas={task: cls.schema},
            kind=cls.schema,
            build=lambda config, count: cls.build(config, num_classes=count),
            task=task,
            needed=("mean_box",),
            what="localizer",
        )
        mean_box = read_numbers(run.metadata, "mean_box", count=4, source=run.path)
        config = without_writes(run.config, overrides)
        return cls(config, run.model, run.class_names, mean_box=mean_box)

    @abstractmethod
    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Return named scalar losses of a training batch."""

    @abstractmethod
    def locate(self, images: ImageBatch, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Find one box for each of `classes` (B, T) int64.

        Returns:
            boxes (B, T, 4) xyxy in original pixels, scores (B, T) in [0, 1].
        """

    @torch.no_grad()
    def predict(self, batch: DetectionBatch) -> list[Localization]:
        """Find the box of each image's annotated class, and of the classifier's top classes.

        Boxes of predicted classes are scored with the probability of their class.
        """
        # column 0: the annotated class; then the classifier's classes
        classes = batch.targets.labels[:, :1]
        probabilities = None
        if self._classifier is not None:
            probabilities, top_classes = self._classifier.top_classes(batch.images)
            classes = torch.cat([classes, top_classes], dim=1)
        boxes, scores = self.locate(batch.images, classes)
        if probabilities is not None:
            # keep the box score of the annotated class; the others are ranked by class probability
            scores = torch.cat([scores[:, :1], probabilities], dim=1)
        rows = zip(boxes.cpu(), scores.cpu(), classes.cpu(), strict=True)
        return [
            Localization(
                given=Detections(boxes=box[:1], scores=score[:1], labels=label[:1]),
                predicted=Detections(boxes=box[1:], scores=score[1:], labels=label[1:]),
            )
            for box, score, label in rows
        ]

    def train_data(self) -> LocalizationDataset:
        """Return the training images."""
        if self._train_data is None:
            self._train_data = LocalizationDataset(
                self.config, "train", training=True, class_names=self.class_names
            )
        return self._train_data

    def val_data(self) -> LocalizationDataset:
        """Return the validation images; their classes must be training classes."""
        if self._val_data is None:
            self._val_data = LocalizationDataset(
                self.config, "val", training=False, class_names=self.class_names
            )
        return self._val_data

    def evaluator(self, *, final: bool = True) -> LocalizationEvaluator:
        """Return a new evaluator of the validation images; `final` has no effect."""
        data = self.val_data()
        return LocalizationEvaluator(
            self.class_names,
            descriptions=data.images.descriptions,
            mean_box=self._mean_box,
            file_name=data.file_name,
        )

    def metadata(self) -> dict[str, str]:
        """Return the metadata of saved weights: class names, pixel statistics, mean box, config."""
        config = self.config
        backbone, dumped = config.model.backbone, config.model_dump_json()
        metadata = network_metadata(config.task, self.class_names, backbone, config=dumped)
        return metadata | {"mean_box": json.dumps(self._mean_box)}

    def notes(self) -> list[str]:
        """Return log lines: loaded weights, data that was dropped or changed, and the baseline."""
        notes = [line for report in self._loaded for line in report.lines()]
        for name, data in (("training", self.train_data()), ("validation", self.val_data())):
            notes += [f"{name} data: {line}" for line in data.images.lines()]
        fractions = ", ".join(f"{value:.3f}" for value in self._mean_box)
        return [*notes, f"baseline: the mean box of the training set, {fractions} of an image"]

    def draw(self, batch: DetectionBatch, predictions: Sequence[Localization]) -> list[np.ndarray]:
        """Draw the ground truth beside the box predicted for the annotated class.

        Images have the size of the network's input, to which predicted boxes are scaled back.
        """
        images, targets = batch.images.to(torch.device("cpu")), batch.targets
        descriptions = self.val_data().images.descriptions
        drawn = []
        for row, found in enumerate(predictions):
            # (2,) width and height: from original to network-input pixels
            scale = images.sizes[row].flip(0) / images.original_sizes[row].flip(0)
            given, valid = found.given, targets.valid[row]
            drawn.append(
                draw_comparison(
                    images.pixels[row].permute(1, 2, 0).numpy(),
                    Detections(given.boxes * scale.repeat(2), given.scores, given.labels),
                    gt_boxes=targets.boxes[row][valid].cpu(),
                    gt_labels=targets.labels[row][valid].cpu(),
                    class_names=descriptions,
                    score_thresh=0.0,
                )
            )
        return drawn
