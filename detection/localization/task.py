"""First stage of localization: losses and prediction of the localizer (appendix C).

B images of one class each, N anchors, S samples and T requested classes per image.
"""

import torch
from torch import Tensor

from detection.localization.base_task import LocalizationBaseTask
from detection.localization.build import build_localizer
from detection.localization.config import LocalizationConfig
from detection.localization.dataset import CROWD_IOA_THRESH
from detection.localization.localizer import Localizer
from detection.localization.losses import localization_loss
from detection.localization.views import localize
from detection.losses import weighted
from detection.ops.boxes import take_boxes
from detection.samples import sample_anchors
from detection.structures import DetectionBatch, ImageBatch


class LocalizationTask(LocalizationBaseTask):
    """Training and prediction of a localizer."""

    schema = LocalizationConfig
    config: LocalizationConfig
    model: Localizer

    @staticmethod
    def build(config: LocalizationConfig, *, num_classes: int) -> Localizer:
        """Build the network from a config, with random weights."""
        return build_localizer(config.model, num_classes=num_classes)

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Compute the losses `localization_class` and `localization_box` of a batch."""
        config, targets = self.config.model, batch.targets
        own_class = targets.labels[:, :1]  # all boxes of an image have the same class
        output = self.model(batch.images.pixels, own_class)
        # T is 1 here: (B, N) and (B, N, 4)
        logits, deltas = output.logits[..., 0], output.deltas[:, :, 0]
        samples = sample_anchors(
            output.anchors,
            torch.ones_like(logits, dtype=torch.bool),  # every anchor is valid
            batch,
            config=config,
            crowd_ioa_thresh=CROWD_IOA_THRESH,
        )
        losses = localization_loss(
            logits.gather(1, samples.idxs),
            take_boxes(deltas, samples.idxs),
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
        return weighted(losses, weights)

    def locate(self, images: ImageBatch, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Find one box for each of `classes` (B, T); see the base class."""
        return localize(self.model, images, classes, config=self.config.evaluation)
