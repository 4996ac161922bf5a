"""Faster R-CNN on a residual network: on c4 as in the paper, or on a feature pyramid.

B images, R RoIs an image, K classes. Frame: network-input pixels, detections excepted. The model
knows neither targets nor losses; a task calls its parts in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from backbones.fpn import FPN
from backbones.normalized import NormalizedNetwork
from backbones.resnet import ResNet
from detection.models.anchors import AnchorGenerator
from detection.models.box_head import (
    BoxPredictor,
    C4BoxHead,
    DetectSettings,
    FPNBoxHead,
    make_detections,
)
from detection.models.proposals import ProposalSettings, make_proposals
from detection.models.rpn import RPNHead, RPNOutput
from detection.ops.box_coder import BoxWeights
from detection.ops.roi_pool import pool_rois
from detection.structures import Detections, ImageBatch, Proposals


@dataclass(frozen=True)
class PoolSettings:
    """How a RoI becomes a map of `resolution` x `resolution` cells; see `pool_rois`."""

    kind: Literal["roi_pool", "roi_align"]
    resolution: int
    sampling_ratio: int
    aligned: bool


@dataclass(frozen=True)
class DetectorSettings:
    """The plain values of a detector.

    pixel_mean, pixel_std: RGB, on the scale 0..255. size_divisor: multiple to which an image is
    padded. box_weights: scale of the region head's deltas.
    """

    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    size_divisor: int
    proposals: ProposalSettings
    pooling: PoolSettings
    box_weights: BoxWeights
    detection: DetectSettings


class FasterRCNN(NormalizedNetwork):
    """The detector's parts, called in order: features, rpn, proposals, roi_head, detect.

    Without a neck, RPN and RoI pooling work on c4, and conv5 (the backbone's layer4) runs on every
    pooled RoI (the paper's appendix A). With a feature pyramid the RPN works on p2..p6 and RoI
    pooling on p2..p5.
    """

    def __init__(
        self,
        backbone: ResNet,
        *,
        neck: FPN | None,
        anchor_generator: AnchorGenerator,
        rpn_head: RPNHead,
        box_head: C4BoxHead | FPNBoxHead,
        box_predictor: BoxPredictor,
        settings: DetectorSettings,
    ) -> None:
        super().__init__(pixel_mean=settings.pixel_mean, pixel_std=settings.pixel_std)
        self.backbone = backbone
        self.fpn = neck
        self.anchor_generator = anchor_generator
        self.rpn_head = rpn_head
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.settings = settings
        specs = backbone.feature_specs if neck is None else neck.feature_specs
        self.rpn_levels = ("c4",) if neck is None else ("p2", "p3", "p4", "p5", "p6")
        self.roi_levels = ("c4",) if neck is None else ("p2", "p3", "p4", "p5")
        self.roi_strides = tuple(specs[level].stride for level in self.roi_levels)
        strides = tuple(specs[level].stride for level in self.rpn_levels)
        assert anchor_generator.strides == strides, f"{anchor_generator.strides} on {strides}"

    @torch.no_grad()
    def predict(self, images: ImageBatch) -> list[Detections]:
        """Return the objects found in each image, in original pixels, on the CPU."""
        features = self.features(images)
        rpn = self.rpn(features, images)
        proposals = self.proposals(rpn, images.sizes, training=False)
        class_logits, deltas = self.roi_head(features, proposals.boxes)
        return self.detect(class_logits, deltas, proposals, images)

    def features(self, images: ImageBatch) -> dict[str, Tensor]:
        """Return the feature maps (B, C, H, W) by name: c2..c4, or p2..p6 with a neck."""
        pixels = self._masked_pixels(images)
        if self.fpn is None:
            return self.backbone.features(pixels, upto=4)
        pyramid: dict[str, Tensor] = self.fpn(self.backbone.features(pixels))
        return pyramid

    def rpn(self, features: Mapping[str, Tensor], images: ImageBatch) -> RPNOutput:
        """Score every anchor, and say how to move it."""
        levels = [features[level] for level in self.rpn_levels]
        objectness_logits, deltas = self.rpn_head(levels)
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        return RPNOutput(
            objectness_logits=objectness_logits,
            deltas=deltas,
            anchors=self.anchor_generator(shapes),
            anchor_valid=self.anchor_generator.valid(
                shapes, images.sizes, size_divisor=self.settings.size_divisor
            ),
            level_sizes=tuple(h * w * self.anchor_generator.num_anchors for h, w in shapes),
        )

    def proposals(self, rpn: RPNOutput, sizes: Tensor, *, training: bool) -> Proposals:
        """Return the best boxes of the RPN, detached; see `make_proposals`."""
        return make_proposals(rpn, sizes, settings=self.settings.proposals, training=training)

    def roi_head(self, features: Mapping[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Classify boxes and refine them.

        Args:
            features: what `features` returned.
            boxes: (B, R, 4) xyxy.

        Returns:
            class logits (B, R, K+1), background last, and deltas (B, R, K, 4) from `boxes`,
            to be divided by `settings.box_weights`.
        """
        pooling = self.settings.pooling
        pooled = pool_rois(
            [features[level] for level in self.roi_levels],
            self.roi_strides,
            boxes,
            kind=pooling.kind,
            resolution=pooling.resolution,
            sampling_ratio=pooling.sampling_ratio,
            aligned=pooling.aligned,
        )
        if self.fpn is None:
            pooled = self.backbone.stage(pooled, 5)
        class_logits, deltas = self.box_predictor(self.box_head(pooled))
        return class_logits.unflatten(0, boxes.shape[:2]), deltas.unflatten(0, boxes.shape[:2])

    def detect(
        self, class_logits: Tensor, deltas: Tensor, proposals: Proposals, images: ImageBatch
    ) -> list[Detections]:
        """Return each image's detections from the head's output on its proposals, on the CPU."""
        return make_detections(
            class_logits,
            deltas,
            proposals,
            images,
            box_weights=self.settings.box_weights,
            settings=self.settings.detection,
        )

    def _masked_pixels(self, images: ImageBatch) -> Tensor:
        """Return float pixels (B, 3, H, W), normalised; padding is zero, as convolutions pad."""
        height, width = images.pixels.shape[2:]
        sizes = images.sizes[:, :, None, None]  # (B, 2, 1, 1)
        rows = torch.arange(height, device=sizes.device)[:, None] < sizes[:, :1]
        columns = torch.arange(width, device=sizes.device) < sizes[:, 1:]
        pixels = self.normalize(images.pixels)
        # not masked_fill, which would lose the memory layout of `pixels`
        return torch.where(rows & columns, pixels, 0.0)
