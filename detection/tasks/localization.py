"""Localization, read like the paper's appendix C: features, outputs of the class, anchors, losses.

B pictures of one class each, N anchors, S samples of a picture, T classes asked for of one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from backbones.weights import WeightsReport, load_configured_weights, load_exactly
from detection.data.localization import LocalizationPictures
from detection.evaluation.localization import Localization, LocalizationEvaluator
from detection.localization_config import LocalizationConfig
from detection.losses import localization_loss
from detection.models.build import build_localizer
from detection.models.localizer import Localizer
from detection.models.localizer_views import LocalizeSettings, localize
from detection.structures import DetectionBatch, Detections
from detection.tasks.class_guesser import ClassGuesser
from detection.tasks.samples import SampleSettings, draw_samples
from detection.visualize import draw_comparison
from engine.checkpoint import read_trained
from engine.config import apply_overrides, parse_config
from engine.errors import UserError

_ANCHOR_STREAM = 0  # of the per-picture random numbers


class LocalizationTask(nn.Module):
    """Training, prediction and data of a localizer.

    Args:
        config: the run's.
        model: the network.
        class_names: WordNet ids, by label.
        mean_box: (4,) the mean box of the training set in shares of a picture: what results are
            compared with.

    Raises:
        UserError: the classifier that the config names is not one of these classes.
    """

    def __init__(
        self,
        config: LocalizationConfig,
        model: Localizer,
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

    @classmethod
    def for_training(cls, config: LocalizationConfig) -> Self:
        """Read the training boxes, make the network they ask for, load pretrained weights.

        Raises:
            UserError: bad data, weights or classifier.
        """
        data = LocalizationPictures(config, "train", training=True)
        names = data.pictures.class_names
        torch.manual_seed(config.seed)
        model = build_localizer(config.model, num_classes=len(names))
        task = cls(config, model, names, mean_box=data.pictures.mean_box().tolist())
        task._train_data = data
        task.val_data()  # a mistake there should show now, not after hours of training
        task._loaded += load_configured_weights(model.backbone, config.model.backbone)
        return task

    @classmethod
    def from_run(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read a run folder, a checkpoint or a .safetensors file, in evaluation mode.

        overrides: `a.b.c=value`, changes to the config that the file holds.

        Raises:
            UserError: it is missing, damaged or no localizer's, or an override is wrong.
        """
        path, state, metadata = read_trained(path)
        for key in ("config", "class_names", "mean_box"):
            if key not in metadata:
                raise UserError(
                    f"{path}: expected a localizer's {key} beside its weights, got none"
                )
        values = apply_overrides(json.loads(metadata["config"]), overrides)
        schemas = {"localization": LocalizationConfig}
        config = parse_config(values, schemas=schemas, source=str(path))
        names = json.loads(metadata["class_names"])
        model = build_localizer(config.model, num_classes=len(names))
        load_exactly(model, state, path=path)
        return cls(config, model.eval(), names, mean_box=json.loads(metadata["mean_box"]))

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Return `localization_class` and `localization_box` of a batch."""
        config, targets = self.config.model, batch.targets
        own_class = targets.labels[:, :1]  # all boxes of a picture are of its class
        output = self.model(batch.images.pixels, own_class)
        logits, deltas = output.logits[..., 0], output.deltas[:, :, 0]
        settings = SampleSettings(
            fg_thresh=config.fg_iou_thresh,
            bg_thresh=config.bg_iou_thresh,
            allow_low_quality=True,
            crowd_ioa_thresh=0.5,
            num_samples=config.num_samples,
            fg_fraction=config.fg_fraction,
        )
        samples = draw_samples(
            targets,
            output.anchors,
            torch.ones_like(logits, dtype=torch.bool),
            batch.images.seeds,
            settings=settings,
            stream=_ANCHOR_STREAM,
        )
        losses = localization_loss(
            logits.gather(1, samples.idxs),
            torch.take_along_dim(deltas, samples.idxs[..., None], dim=1),
            samples.boxes,
            samples.gt_boxes,
            samples.is_fg,
            samples.valid,
            box_loss=config.box_loss,
            beta=config.smooth_l1_beta,
        )
        weights = {
            "localization_class": config.class_weight,
            "localization_box": config.box_weight,
        }
        return {name: value * weights[name] for name, value in losses.items()}

    @torch.no_grad()
    def predict(self, batch: DetectionBatch) -> list[Localization]:
        """Return where each picture's own class is, and where those are that a classifier names."""
        config = self.config.evaluation
        settings = LocalizeSettings(
            view=config.view,
            crop=config.crop,
            scales=config.scales,
            mirror=config.mirror,
            merge=config.merge,
            vote_iou_thresh=config.vote_iou_thresh,
            candidates=config.candidates,
        )
        classes = batch.targets.labels[:, :1]
        chances = None
        if self._guesser is not None:
            chances, guessed = self._guesser.best(batch.images)
            classes = torch.cat([classes, guessed], dim=1)
        boxes, scores = localize(self.model, batch.images, classes, settings=settings)
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

    def evaluator(self) -> LocalizationEvaluator:
        """Return a fresh evaluator of the validation pictures."""
        data = self.val_data()
        return LocalizationEvaluator(
            self.class_names,
            words=data.pictures.words,
            mean_box=self._mean_box,
            file_name=data.file_name,
        )

    def metadata(self) -> dict[str, str]:
        """Return class names, pixels, the training set's mean box and the config."""
        backbone = self.config.model.backbone
        return {
            "task": self.config.task,
            "class_names": json.dumps(self.class_names),
            "pixel_mean": json.dumps(backbone.pixel_mean),
            "pixel_std": json.dumps(backbone.pixel_std),
            "mean_box": json.dumps(self._mean_box),
            "config": self.config.model_dump_json(),
        }

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
