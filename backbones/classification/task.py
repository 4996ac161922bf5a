"""Classification task: training losses, prediction, data and evaluation (the paper, section 3.4).

B images, K classes.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.build import build_network
from backbones.classification.batch_transforms import (
    mixup_cutmix,
    pad_crop_flip,
    random_erase,
    smooth_targets,
)
from backbones.classification.cifar import CifarDataset
from backbones.classification.config import ClassificationConfig
from backbones.classification.folder import FolderDataset
from backbones.classification.metrics import ClassificationEvaluator
from backbones.classification.model import Classifier
from backbones.classification.structures import ClassificationBatch
from backbones.classification.views import predict_probabilities
from backbones.classification.visualize import draw_prediction
from backbones.start_checks import check_batch_norm_size
from backbones.weights import WeightsReport, load_configured_weights, network_metadata

Images = CifarDataset | FolderDataset


class ClassificationTask(nn.Module):
    """Training, prediction and data of a classifier or ensemble; implements `engine.task.Task`."""

    def __init__(
        self,
        config: ClassificationConfig,
        model: Classifier,
        class_names: Sequence[str],
        *,
        ensemble: Sequence[Classifier] = (),
    ) -> None:
        """Store the model to train; predictions are averaged over it and the `ensemble`."""
        super().__init__()
        self.config = config
        self.model = model
        self.others = nn.ModuleList(ensemble)
        self.class_names = tuple(class_names)
        self._train_data: Images | None = None
        self._val_data: Images | None = None
        self._loaded: list[WeightsReport] = []

    @classmethod
    def for_training(cls, config: ClassificationConfig) -> Self:
        """Read the datasets, build a network for their classes, and load pretrained weights.

        Raises:
            UserError: the data or weights are bad, or the config cannot train.
        """
        _check_start(config)
        data = read_training(config)
        torch.manual_seed(config.seed)
        task = cls(
            config, build_classifier(config, num_classes=len(data.class_names)), data.class_names
        )
        task._train_data = data
        task.val_data()  # so that a mistake shows now, not after hours of training
        task._loaded += load_configured_weights(task.model.backbone, config.model.backbone)
        return task

    def losses(self, batch: ClassificationBatch) -> dict[str, Tensor]:
        """Return the loss `class`; without mixup and cutmix also the training error `train_error`.

        `train_error` has no gradient: it is logged, not minimised.
        """
        config, seeds = self.config.augment, batch.seeds
        mixed = config.mixup_alpha > 0 or config.cutmix_alpha > 0
        x = self.training_pixels(batch)
        if config.erasing_prob > 0:
            x = random_erase(x, seeds, prob=config.erasing_prob)
        smoothing = self.config.loss.label_smoothing
        targets = smooth_targets(batch.labels, len(self.class_names), smoothing)
        if mixed:
            alphas = {"mixup_alpha": config.mixup_alpha, "cutmix_alpha": config.cutmix_alpha}
            x, targets = mixup_cutmix(x, targets, seeds, **alphas)
        logits = self.model(x).float()
        if self.config.loss.kind == "bce":
            losses = {"class": F.binary_cross_entropy_with_logits(logits, targets)}
        else:
            losses = {"class": F.cross_entropy(logits, targets)}
        if not mixed:
            losses["train_error"] = (logits.detach().argmax(1) != batch.labels).float().mean()
        return losses

    def training_pixels(self, batch: ClassificationBatch) -> Tensor:
        """Return the normalised pixels (B, 3, H, W) float32, before mixing and erasing."""
        pixels, config = batch.pixels, self.config.augment
        if self.config.data.kind != "folder":  # for folders, the workers crop and flip
            pixels = pad_crop_flip(
                pixels,
                batch.seeds,
                pad=config.pad,
                flip_prob=config.flip_prob,
                crop=config.crop,
            )
        return self.model.normalize(pixels)

    @torch.no_grad()
    def predict(self, batch: ClassificationBatch) -> list[Tensor]:
        """Return the class probabilities (K,) of each image, on the CPU."""
        config = self.config.evaluation
        models = [self.model, *self.others]
        probabilities = predict_probabilities(
            models, batch.pixels, view=config.view, crop=config.crop, scales=config.scales
        )
        return list(probabilities.cpu())

    def train_data(self) -> Images:
        """Return the training dataset."""
        if self._train_data is None:
            self._train_data = read_training(self.config)
        return self._train_data

    def val_data(self) -> Images:
        """Return the validation dataset."""
        if self._val_data is None:
            if self.config.data.kind == "folder":
                self._val_data = FolderDataset.validation(self.config, self.class_names)
            else:
                self._val_data = CifarDataset.validation(self.config.data)
        return self._val_data

    def evaluator(self, *, final: bool = True) -> ClassificationEvaluator:
        """Return a new evaluator; `final` makes no difference."""
        return ClassificationEvaluator(self.class_names)

    def metadata(self) -> dict[str, str]:
        """Return class names, pixel normalisation and config, for the weights file."""
        config = self.config
        backbone, dumped = config.model.backbone, config.model_dump_json()
        return network_metadata(config.task, self.class_names, backbone, config=dumped)

    def notes(self) -> list[str]:
        """Return log lines for the start of training: notes on the data, origin of the weights."""
        lines = [*self.train_data().notes, *self.val_data().notes]
        return lines + [line for report in self._loaded for line in report.lines()]

    def draw(self, batch: ClassificationBatch, predictions: Sequence[Tensor]) -> list[np.ndarray]:
        """Draw every image with its true class and the best prediction."""
        images = batch.pixels.permute(0, 2, 3, 1).cpu().numpy()
        labels = batch.labels.tolist()
        return [
            draw_prediction(image, label, prediction, class_names=self.class_names)
            for image, label, prediction in zip(images, labels, predictions, strict=True)
        ]


def read_training(config: ClassificationConfig) -> Images:
    """Return the training dataset of a config."""
    if config.data.kind == "folder":
        return FolderDataset.training(config)
    return CifarDataset.training(config.data)


def build_classifier(config: ClassificationConfig, *, num_classes: int) -> Classifier:
    """Build the network of a config, with random weights."""
    backbone = config.model.backbone
    network = build_network(
        backbone.kind,
        num_classes=num_classes,
        norm=backbone.norm,
        norm_eps=backbone.norm_eps,
        stride_in_1x1=backbone.stride_in_1x1,
        shortcut=backbone.shortcut,
        width_multiplier=backbone.width_multiplier,
    )
    return Classifier(network, pixel_mean=backbone.pixel_mean, pixel_std=backbone.pixel_std)


def _check_start(config: ClassificationConfig) -> None:
    backbone, crop = config.model.backbone, config.augment.crop
    if backbone.has_norms and backbone.norm == "batch":
        # strides of the last stages: CIFAR's three stages end at 4, ImageNet's four at 32
        stride = 4 if backbone.kind.startswith("cifar_") else 32
        source = f"augment.crop={crop}"
        check_batch_norm_size(
            "model.backbone.norm", config.loop, side=crop, stride=stride, source=source
        )
