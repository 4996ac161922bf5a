"""Instance segmentation task: training, prediction and data of Mask R-CNN.

B images, S samples per image, of which at most F are foreground, K classes, M cells along a mask's
side.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from detection.losses import mask_loss
from detection.models.mask_head import masks_of_labels
from detection.ops.masks import crop_masks
from detection.samples import most_foreground
from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask


class SegmentationTask(DetectionTask):
    """Training, prediction and data of a detector with a mask head."""

    with_masks: ClassVar[bool] = True

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Return the detector's losses and `mask`.

        In a cascade masks train on the foreground samples of the first stage, as in detectron2.
        """
        losses, inputs = self.box_losses(batch)
        features, rois, pooled = inputs[0]
        config, targets = self.config.model, batch.targets
        assert targets.masks is not None, "the data set was created without masks"
        # Foreground comes first, so only the first F samples of each image can have a mask.
        foreground = slice(most_foreground(rois.is_fg, self._max_foreground()))
        boxes, gt_idxs = rois.boxes[:, foreground], rois.gt_idxs[:, foreground]
        is_fg = rois.is_fg[:, foreground]
        logits = self.model.mask_logits(features, boxes, regions=pooled[:, foreground], valid=is_fg)
        target_masks = crop_masks(
            targets.masks,
            gt_idxs,
            boxes,
            width=batch.images.pixels.shape[3],
            resolution=logits.shape[-1],
            aligned=config.mask.aligned,
        )
        if config.mask.binary_targets:
            target_masks = (target_masks >= 0.5).to(target_masks.dtype)
        # (B, F, K, M, M) -> (B, F, M, M): the masks of the true classes
        true_logits = masks_of_labels(logits, targets.labels.gather(1, gt_idxs))
        masks = mask_loss(true_logits, target_masks, is_fg, count=batch.mask_count)
        return losses | {name: value * config.mask.weight for name, value in masks.items()}

    def with_counts(self, parts: Sequence[DetectionBatch]) -> list[DetectionBatch]:
        """Return the parts of a step with their mean number of foreground samples.

        The number is known only after sampling. So the parts run once without the region head.
        """
        counts = [self.first_stage_samples(part).is_fg.sum() for part in parts]
        mean = torch.stack(counts).float().mean()
        return [replace(part, mask_count=mean) for part in parts]

    def _max_foreground(self) -> int:
        """Return the largest number of samples of an image in the mask loss."""
        return int(self.config.model.roi.num_samples * self.config.model.roi.fg_fraction)
