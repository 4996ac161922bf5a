"""Mask R-CNN, read like the paper's figure: a detector, and a mask for each of its boxes.

B images, S samples an image of which F may be foreground, M cells along a mask's side.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from detection.losses import mask_loss
from detection.models.mask_head import masks_of_labels
from detection.ops.masks import cut_masks
from detection.samples import most_foreground
from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask


class SegmentationTask(DetectionTask):
    """Training, prediction and data of a detector with a mask head."""

    with_masks: ClassVar[bool] = True

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Return the detector's losses and `mask`, of the last stage's foreground."""
        losses, (features, rois, pooled) = self.box_losses(batch)
        config, targets = self.config.model, batch.targets
        assert targets.masks is not None, "the data set was made without masks"
        # Foreground comes first: what lies behind its largest number has no mask to learn.
        foreground = slice(most_foreground(rois.is_fg, self._most_masks()))
        boxes, gt_idxs = rois.boxes[:, foreground], rois.gt_idxs[:, foreground]
        logits = self.model.mask_logits(features, boxes, regions=pooled[:, foreground])
        wanted = cut_masks(
            targets.masks,
            gt_idxs,
            boxes,
            width=batch.images.pixels.shape[3],
            resolution=logits.shape[-1],
            aligned=config.mask.aligned,
        )
        own = masks_of_labels(logits, targets.labels.gather(1, gt_idxs))
        is_fg = rois.is_fg[:, foreground]
        masks = mask_loss(own, wanted, is_fg, count=batch.mask_count)
        return losses | {name: value * config.mask.weight for name, value in masks.items()}

    def with_counts(self, parts: Sequence[DetectionBatch]) -> list[DetectionBatch]:
        """Return the parts of a step with their mean number of foreground samples.

        It is known after the sampling alone: a pass without gradients and without the mask head.
        """
        samples = [self.box_losses(part)[1].samples for part in parts]
        counts = [rois.is_fg[:, : self._most_masks()].sum() for rois in samples]
        mean = torch.stack(counts).float().mean()
        return [replace(part, mask_count=mean) for part in parts]

    def _most_masks(self) -> int:
        """Return how many samples of an image may be foreground."""
        return int(self.config.model.roi.num_samples * self.config.model.roi.fg_fraction)
