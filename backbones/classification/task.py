"""Classification, read like the paper's section 3.4: augmented images, network, loss.

B images, K classes.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.classification.cifar import CifarImages
from backbones.classification.config import ClassificationConfig
from backbones.classification.folder import FolderImages
from backbones.classification.metrics import ClassificationEvaluator
from backbones.classification.mixing import erase, mix, shift_and_mirror, smooth_targets
from backbones.classification.model import Classifier, build_network
from backbones.classification.structures import LabelledBatch
from backbones.classification.views import predict_probabilities
from backbones.classification.visualize import draw_prediction
from backbones.start_checks import check_norm
from backbones.weights import WeightsReport, load_configured_weights, network_metadata

Images = CifarImages | FolderImages


class ClassificationTask(nn.Module):
    """Training, prediction and data of a classifier, or of an ensemble of them."""

    def __init__(
        self,
        config: ClassificationConfig,
        model: Classifier,
        class_names: Sequence[str],
        *,
        ensemble: Sequence[Classifier] = (),
    ) -> None:
        """Take the model that is trained; `ensemble` are others that predict with it."""
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
        """Find the training images, make the network they ask for, load pretrained weights.

        Raises:
            UserError: bad data or weights, or what cannot train.
        """
        _check_start(config)
        data = read_training(config)
        torch.manual_seed(config.seed)
        task = cls(
            config, build_classifier(config, num_classes=len(data.class_names)), data.class_names
        )
        task._train_data = data
        task.val_data()  # a mistake there should show now, not after hours of training
        task._loaded += load_configured_weights(task.model.backbone, config.model.backbone)
        return task

    def losses(self, batch: LabelledBatch) -> dict[str, Tensor]:
        """Return the loss `class`, and the measured `train_error` when no images are mixed."""
        config, seeds = self.config.augment, batch.seeds
        mixed = config.mixup_alpha > 0 or config.cutmix_alpha > 0
        x = self.training_pixels(batch)
        if config.erasing_prob > 0:
            x = erase(x, seeds, prob=config.erasing_prob)
        smoothing = self.config.loss.label_smoothing
        targets = smooth_targets(batch.labels, len(self.class_names), smoothing)
        if mixed:
            alphas = {"mixup_alpha": config.mixup_alpha, "cutmix_alpha": config.cutmix_alpha}
            x, targets = mix(x, targets, seeds, **alphas)
        logits = self.model(x).float()
        if self.config.loss.kind == "bce":
            losses = {"class": F.binary_cross_entropy_with_logits(logits, targets)}
        else:
            losses = {"class": F.cross_entropy(logits, targets)}
        if not mixed:
            losses["train_error"] = (logits.detach().argmax(1) != batch.labels).float().mean()
        return losses

    def training_pixels(self, batch: LabelledBatch) -> Tensor:
        """Return a training batch as the network sees it before mixing, (B, 3, H, W) float32."""
        pixels, config = batch.pixels, self.config.augment
        if self.config.data.kind != "folder":  # there the workers cut and mirror
            pixels = shift_and_mirror(
                pixels,
                batch.seeds,
                pad=config.pad,
                flip_prob=config.flip_prob,
                crop=config.crop,
            )
        return self.model.normalize(pixels)

    @torch.no_grad()
    def predict(self, batch: LabelledBatch) -> list[Tensor]:
        """Return each image's class probabilities (K,), on the CPU."""
        config = self.config.evaluation
        models = [self.model, *self.others]
        probabilities = predict_probabilities(
            models, batch.pixels, view=config.view, crop=config.crop, scales=config.scales
        )
        return list(probabilities.cpu())

    def train_data(self) -> Images:
        """Return the training images."""
        if self._train_data is None:
            self._train_data = read_training(self.config)
        return self._train_data

    def val_data(self) -> Images:
        """Return the validation images."""
        if self._val_data is None:
            if self.config.data.kind == "folder":
                self._val_data = FolderImages.validation(self.config, self.class_names)
            else:
                self._val_data = CifarImages.validation(self.config.data)
        return self._val_data

    def evaluator(self, *, final: bool = True) -> ClassificationEvaluator:
        """Return a fresh evaluator, the same whether `final` or not."""
        return ClassificationEvaluator(self.class_names)

    def metadata(self) -> dict[str, str]:
        """Return class names, pixels and config, for the weights' file."""
        config = self.config
        backbone, dumped = config.model.backbone, config.model_dump_json()
        return network_metadata(config.task, self.class_names, backbone, config=dumped)

    def notes(self) -> list[str]:
        """Return lines for the start of training: the data's, and the origin of the weights."""
        lines = [*self.train_data().notes, *self.val_data().notes]
        return lines + [line for report in self._loaded for line in report.lines()]

    def draw(self, batch: LabelledBatch, predictions: Sequence[Tensor]) -> list[np.ndarray]:
        """Draw every image with its class and the best prediction."""
        images = batch.pixels.permute(0, 2, 3, 1).cpu().numpy()
        labels = batch.labels.tolist()
        return [
            draw_prediction(image, label, prediction, class_names=self.class_names)
            for image, label, prediction in zip(images, labels, predictions, strict=True)
        ]


def read_training(config: ClassificationConfig) -> Images:
    """Return the training images that a config names."""
    if config.data.kind == "folder":
        return FolderImages.training(config)
    return CifarImages.training(config.data)


def build_classifier(config: ClassificationConfig, *, num_classes: int) -> Classifier:
    """Build the network of a config, at random weights."""
    backbone = config.model.backbone
    network = build_network(
        backbone.kind,
        num_classes=num_classes,
        norm=backbone.norm,
        norm_eps=backbone.norm_eps,
        stride_in_1x1=backbone.stride_in_1x1,
        shortcut=backbone.shortcut,
    )
    return Classifier(network, pixel_mean=backbone.pixel_mean, pixel_std=backbone.pixel_std)


def _check_start(config: ClassificationConfig) -> None:
    backbone, crop = config.model.backbone, config.augment.crop
    if backbone.norm == "batch":
        stride = 4 if backbone.kind.startswith("cifar_") else 32
        source = f"augment.crop={crop}"
        check_norm("model.backbone.norm", config.loop, side=crop, stride=stride, source=source)
