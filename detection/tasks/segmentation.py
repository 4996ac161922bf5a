"""Mask R-CNN, read like the paper's figure: a detector, and a mask for each of its boxes.

B images, S samples an image of which F may be foreground, M cells along a mask's side.
"""

from typing import ClassVar

from torch import Tensor

from detection.losses import mask_loss
from detection.models.mask_head import masks_of_labels
from detection.ops.masks import cut_masks
from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask
from detection.tasks.samples import most_foreground


class SegmentationTask(DetectionTask):
    """Training, prediction and data of a detector with a mask head."""

    with_masks: ClassVar[bool] = True

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Return the detector's losses and `mask`, of the last stage's foreground."""
        losses, (features, rois, pooled) = self.box_losses(batch)
        config, targets = self.config.model, batch.targets
        assert targets.masks is not None, "the data set was made without masks"
        # Foreground comes first: what lies behind its largest number has no mask to learn.
        largest = int(config.roi.num_samples * config.roi.fg_fraction)
        foreground = slice(most_foreground(rois.is_fg, largest))
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
        masks = mask_loss(own, wanted, rois.is_fg[:, foreground])
        return losses | {name: value * config.mask.weight for name, value in masks.items()}
