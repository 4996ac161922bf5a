"""What both stages of localization share: pictures of one class each, answers, their scoring.

B pictures, T classes asked for of one.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from backbones.metadata import numbers_of, writing_nothing
from backbones.trained_runs import read_run
from backbones.weights import (
    WeightsReport,
    load_configured_weights,
    network_metadata,
)
from detection.localization.classifier import ClassGuesser
from detection.localization.config import OneClassConfig
from detection.localization.dataset import LocalizationPictures
from detection.localization.evaluation import Localization, LocalizationEvaluator
from detection.localization.localizer import Localizer
from detection.localization.region_classifier import RegionClassifier
from detection.localization.start_checks import check_localizer
from detection.structures import DetectionBatch, Detections, ImageBatch
from detection.visualize import draw_comparison
from engine.checkpoint import find_trained


class OneClassTask(nn.Module, ABC):
    """Base of the two tasks, which add the network, its losses and where it finds boxes.

    Args:
        config: the run's.
        model: the network.
        class_names: WordNet ids, by label.
        mean_box: (4,) the mean box of the training set in shares of a picture: what results are
            compared with.

    Raises:
        UserError: the classifier that the config names is not one of these classes.
    """

    schema: ClassVar[type[OneClassConfig]]

    def __init__(
        self,
        config: OneClassConfig,
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
        self._guesser = None
        if classifier is not None:
            self._guesser = ClassGuesser(Path(classifier), self.class_names)
        self._train_data: LocalizationPictures | None = None
        self._val_data: LocalizationPictures | None = None
        self._loaded: list[WeightsReport] = []

    @staticmethod
    @abstractmethod
    def build(config: Any, *, num_classes: int) -> Localizer | RegionClassifier:
        """Return the network of a config of `schema`, at random weights."""

    @classmethod
    def for_training(cls, config: OneClassConfig) -> Self:
        """Read the training boxes, make the network they ask for, load pretrained weights.

        Raises:
            UserError: bad data, weights, classifier or first stage, or what cannot train.
        """
        check_localizer(config)
        if config.evaluation.classifier is not None:
            find_trained(Path(config.evaluation.classifier))  # reading ILSVRC's boxes takes minutes
        data = LocalizationPictures(config, "train", training=True)
        names = data.pictures.class_names
        torch.manual_seed(config.seed)
        model = cls.build(config, num_classes=len(names))
        task = cls(config, model, names, mean_box=data.pictures.mean_box().tolist())
        task._train_data = data
        task.val_data()  # a mistake there should show now, not after hours of training
        task._loaded += load_configured_weights(model.backbone, config.model.backbone)
        return task

    @classmethod
    def from_run(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read what a run leaves, in evaluation mode: a folder, checkpoint or .safetensors file.

        Args:
            path: folder or file.
            overrides: `a.b.c=value`, changes to the config that the file holds.

        Raises:
            UserError: it is missing, damaged or another task's, or an override is wrong.
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
        mean_box = numbers_of(run.metadata, "mean_box", count=4, source=run.path)
        harmless = writing_nothing(run.config, overrides)
        return cls(harmless, run.model, run.class_names, mean_box=mean_box)

    @abstractmethod
    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Return named scalar losses of a training batch."""

    @abstractmethod
    def locate(self, images: ImageBatch, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, T, 4) in original pixels and scores (B, T) of `classes` (B, T)."""

    @torch.no_grad()
    def predict(self, batch: DetectionBatch) -> list[Localization]:
        """Return where each picture's own class is, and where those are that a classifier names."""
        classes = batch.targets.labels[:, :1]
        chances = None
        if self._guesser is not None:
            chances, guessed = self._guesser.best(batch.images)
            classes = torch.cat([classes, guessed], dim=1)
        boxes, scores = self.locate(batch.images, classes)
        if chances is not None:
            scores = torch.cat([scores[:, :1], chances], dim=1)
        rows = zip(boxes.cpu(), scores.cpu(), classes.cpu(), strict=True)
        return [
            Localization(
                given=Detections(boxes=box[:1], scores=score[:1], labels=label[:1]),
                predicted=Detections(boxes=box[1:], scores=score[1:], labels=label[1:]),
            )
            for box, score, label in rows
        ]

    def train_data(self) -> LocalizationPictures:
        """Return the training pictures."""
        if self._train_data is None:
            self._train_data = LocalizationPictures(
                self.config, "train", training=True, class_names=self.class_names
            )
        return self._train_data

    def val_data(self) -> LocalizationPictures:
        """Return the validation pictures; their classes must be the training classes."""
        if self._val_data is None:
            self._val_data = LocalizationPictures(
                self.config, "val", training=False, class_names=self.class_names
            )
        return self._val_data

    def evaluator(self, *, final: bool = True) -> LocalizationEvaluator:
        """Return a fresh evaluator of the validation pictures, the same whether `final` or not."""
        data = self.val_data()
        return LocalizationEvaluator(
            self.class_names,
            words=data.pictures.words,
            mean_box=self._mean_box,
            file_name=data.file_name,
        )

    def metadata(self) -> dict[str, str]:
        """Return class names, pixels, the training set's mean box and the config."""
        config = self.config
        backbone, dumped = config.model.backbone, config.model_dump_json()
        metadata = network_metadata(config.task, self.class_names, backbone, config=dumped)
        return metadata | {"mean_box": json.dumps(self._mean_box)}

    def notes(self) -> list[str]:
        """Return what was loaded, and what the data's checks left out or changed."""
        notes = [line for report in self._loaded for line in report.lines()]
        for name, data in (("training", self.train_data()), ("validation", self.val_data())):
            notes += [f"{name} data: {line}" for line in data.pictures.lines()]
        shares = ", ".join(f"{value:.3f}" for value in self._mean_box)
        return [*notes, f"baseline: the mean box of the training set, {shares} of a picture"]

    def draw(self, batch: DetectionBatch, predictions: Sequence[Localization]) -> list[np.ndarray]:
        """Draw the truth and the box of the given class side by side, at the size tested."""
        images, targets = batch.images.to(torch.device("cpu")), batch.targets
        words = self.val_data().pictures.words
        drawn = []
        for row, found in enumerate(predictions):
            scale = images.sizes[row].flip(0) / images.original_sizes[row].flip(0)
            given, real = found.given, targets.valid[row]
            drawn.append(
                draw_comparison(
                    images.pixels[row].permute(1, 2, 0).numpy(),
                    Detections(given.boxes * scale.repeat(2), given.scores, given.labels),
                    gt_boxes=targets.boxes[row][real].cpu(),
                    gt_labels=targets.labels[row][real].cpu(),
                    class_names=words,
                    score_thresh=0.0,
                )
            )
        return drawn
