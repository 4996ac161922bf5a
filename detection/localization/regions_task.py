"""Second stage of localization: R-CNN on the proposals of the first stage (appendix C).

B images of one class each, P proposals, S samples and T requested classes per image, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from backbones.weights import listing
from detection.localization.base_task import LocalizationBaseTask
from detection.localization.build import build_region_classifier
from detection.localization.config import LocalizationBaseConfig, LocalizationRegionsConfig
from detection.localization.dataset import CROWD_IOA_THRESH
from detection.localization.localizer import Localizer
from detection.localization.region_classifier import RegionClassifier
from detection.localization.task import LocalizationTask
from detection.localization.views import find_candidates, merge_candidates, propose
from detection.losses import roi_loss
from detection.ops.box_coder import BoxWeights, decode_boxes
from detection.ops.boxes import box_factors, clip_boxes, flip_boxes, take_boxes
from detection.samples import class_labels, sample_rois, with_ground_truth
from detection.structures import DetectionBatch, ImageBatch, Proposals
from engine.checkpoint import find_weights_file
from engine.errors import UserError


class LocalizationRegionsTask(LocalizationBaseTask):
    """Training and prediction of the region classifier.

    The first stage makes the proposals and is not trained. A batch takes a few proposals from each
    of many images, not all proposals of one image, whose regions would resemble each other.
    """

    schema = LocalizationRegionsConfig
    config: LocalizationRegionsConfig
    model: RegionClassifier

    def __init__(
        self,
        config: LocalizationRegionsConfig,
        model: RegionClassifier,
        class_names: Sequence[str],
        *,
        mean_box: Sequence[float],
    ) -> None:
        """Initialize the base class, and load the first stage."""
        super().__init__(config, model, class_names, mean_box=mean_box)
        # the first stage's own classifier is not needed here, and its run may be deleted
        without_classifier = ["evaluation.classifier=null"]
        first = LocalizationTask.from_run(Path(config.model.localizer), without_classifier)
        if first.class_names != self.class_names:
            raise UserError(
                f"model.localizer {config.model.localizer}: expected the classes "
                f"{listing(self.class_names)}, got {listing(first.class_names)}"
            )
        # In a list, which hides it from nn.Module: it is not trained, averaged (EMA) or saved.
        self._first = [first.model.requires_grad_(False)]

    @property
    def first_stage(self) -> Localizer:
        """The network that makes the proposals."""
        return self._first[0]

    @classmethod
    def for_training(cls, config: LocalizationBaseConfig) -> Self:
        """Build the task as the base class does, after a check that the first stage exists."""
        assert isinstance(config, LocalizationRegionsConfig)
        find_weights_file(
            Path(config.model.localizer)
        )  # reading ILSVRC's annotations takes minutes
        return super().for_training(config)

    @staticmethod
    def build(config: LocalizationRegionsConfig, *, num_classes: int) -> RegionClassifier:
        """Build the network from a config, with random weights."""
        return build_region_classifier(config.model, num_classes=num_classes)

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Compute the losses `roi_class` and `roi_box` of a batch."""
        config, targets = self.config.model, batch.targets
        own_class = targets.labels[:, 0]  # all boxes of an image have the same class
        proposals = self._propose(batch.images, own_class, whole=True)
        # ground-truth boxes are candidates too
        candidates, valid = with_ground_truth(proposals, targets)
        samples = sample_rois(
            candidates, valid, batch, config=config, crowd_ioa_thresh=CROWD_IOA_THRESH
        )
        class_logits, deltas = self.model(batch.images.pixels, samples.boxes)
        return roi_loss(
            class_logits,
            deltas,
            class_labels(samples, targets, num_classes=len(self.class_names)),
            samples.target_deltas,
            samples.valid,
            beta=config.smooth_l1_beta,
        )

    def locate(self, images: ImageBatch, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Find one box for each of `classes` (B, T); see the base class."""
        found = []
        for label in classes.unbind(1):  # class by class, so that memory holds the regions of one
            proposals = self._propose(images, label, whole=False)
            found.append(
                locate_among(
                    self.model,
                    images.pixels,
                    proposals,
                    label,
                    sizes=images.sizes,
                    config=self.config,
                )
            )
        # from network-input to original pixels
        scale = box_factors(images.sizes, images.original_sizes)
        boxes = torch.stack([box for box, _ in found], dim=1) * scale[:, None]
        return boxes, torch.stack([score for _, score in found], dim=1)

    def notes(self) -> list[str]:
        """Return the log lines of the base class, and the source of the proposals."""
        path = self.config.model.localizer
        return [
            *super().notes(),
            f"proposals from {path}, at most {self.config.model.num_proposals}",
        ]

    def _propose(self, images: ImageBatch, label: Tensor, *, whole: bool) -> Proposals:
        """Return the first stage's proposals for one class per image.

        Args:
            images: the batch.
            label: (B,) the class.
            whole: use a single view of the whole image (training) in place of the evaluation views.
        """
        config = self.config.model
        views = self.config.evaluation
        changes: dict[str, object] = {"candidates": max(views.candidates, config.num_proposals)}
        if whole:
            side = min(images.pixels.shape[2:])
            # the crops of a batch are square, so their side is the short side: no resize
            changes |= {"view": "dense", "scales": (side,), "mirror": False}
        boxes, scores = find_candidates(
            self.first_stage.to(images.pixels.device),
            images.pixels,
            label[:, None],
            config=views.model_copy(update=changes),
        )
        return propose(
            boxes[:, 0],
            scores[:, 0],
            images.sizes,
            nms_thresh=config.nms_thresh,
            count=config.num_proposals,
        )


def locate_among(
    model: RegionClassifier,
    pixels: Tensor,
    proposals: Proposals,
    label: Tensor,
    *,
    sizes: Tensor,
    config: LocalizationRegionsConfig,
) -> tuple[Tensor, Tensor]:
    """Refine the proposals of one class per image, and merge them into one box.

    Args:
        model: in evaluation mode.
        pixels: (B, 3, H, W), the network's input.
        proposals: P of each image.
        label: (B,) the class.
        sizes: (B, 2) height and width of the network's input.
        config: how the boxes are merged.

    Returns:
        boxes (B, 4) xyxy in network-input pixels, scores (B,) in [0, 1].
    """
    evaluation, weights = config.evaluation, config.model.box_weights
    boxes, scores = _refine(model, pixels, proposals.boxes, label, weights=weights)
    if evaluation.mirror:
        width = pixels.shape[3]
        regions = flip_boxes(proposals.boxes, width)
        mirrored, mirrored_scores = _refine(model, pixels.flip(3), regions, label, weights=weights)
        # mean of both views, with the mirrored boxes flipped back
        boxes = (boxes + flip_boxes(mirrored, width)) / 2
        scores = (scores + mirrored_scores) / 2
    boxes = clip_boxes(boxes, sizes)
    # padding of the proposals must not win or vote
    scores = scores.masked_fill(~proposals.valid, 0.0)
    return merge_candidates(boxes, scores, config=evaluation)


def _refine(
    model: RegionClassifier, pixels: Tensor, regions: Tensor, label: Tensor, *, weights: BoxWeights
) -> tuple[Tensor, Tensor]:
    """Refine regions (B, P, 4) for the class `label` (B,).

    Returns:
        boxes (B, P, 4) and scores (B, P), the softmax probability of the class.
    """
    class_logits, deltas = model(pixels, regions)
    # All K classes are predicted; only the outputs of the requested one are used.
    # (B, P, 1) index of the class; deltas are (B, P, K, 4)
    own = label[:, None, None].expand(-1, deltas.shape[1], 1)
    own_deltas = take_boxes(deltas, own)[:, :, 0]
    boxes = decode_boxes(own_deltas, regions, weights=weights)
    return boxes, class_logits.softmax(dim=2).gather(2, own)[..., 0]
