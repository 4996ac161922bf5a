"""Faster and Mask R-CNN on a residual network: on c4 as in the paper, or on a feature pyramid.

B images, R RoIs an image, K classes, M cells along a mask's side. Frame: network-input pixels,
detections excepted. The model knows neither targets nor losses; a task calls its parts in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from backbones.fpn import FPN
from backbones.pixel_normalization import PixelNormalizedNetwork
from backbones.resnet import ResNet
from detection.config import ModelConfig
from detection.models.anchors import AnchorGenerator
from detection.models.box_head import (
    BoxStage,
    Selection,
    refine_boxes,
    select_detections,
    to_detections,
)
from detection.models.mask_head import MaskHead, masks_of_labels
from detection.models.proposals import make_proposals
from detection.models.rpn import RPNHead, RPNOutput
from detection.ops.roi_pool import pool_rois
from detection.structures import Detections, ImageBatch

MASK_RESOLUTION = 14
"""Side of the map that is pooled from the pyramid for a mask, which has twice as many cells."""


class FasterRCNN(PixelNormalizedNetwork):
    """The detector's parts, called in order: `features`, `rpn`, `region_features`, `box_outputs`.

    Between them stand functions without parameters: `make_proposals`, `refine_boxes` and
    `select_detections`.

    Without a neck, RPN and RoI pooling work on c4, and conv5 (the backbone's layer4) runs on every
    pooled RoI (the paper's appendix A). With a feature pyramid the RPN works on p2..p6 and RoI
    pooling on p2..p5. Each of `box_stages` but the first classifies and moves the boxes of the one
    before it (Cai and Vasconcelos 2018); classes, boxes and masks are the last one's.

    Args:
        backbone: the residual network, without `fc`.
        neck: the feature pyramid, or none.
        anchor_generator: anchors on the levels that the RPN sees.
        rpn_head: the RPN's layers.
        box_stages: the region head's stages, at least one.
        config: how RoIs are pooled, proposals made and detections selected.
        size_divisor: multiple to which an image is padded.
        mask_head: of Mask R-CNN.
    """

    def __init__(
        self,
        backbone: ResNet,
        *,
        neck: FPN | None,
        anchor_generator: AnchorGenerator,
        rpn_head: RPNHead,
        box_stages: Sequence[BoxStage],
        config: ModelConfig,
        size_divisor: int,
        mask_head: MaskHead | None = None,
    ) -> None:
        pixels = config.backbone
        super().__init__(pixel_mean=pixels.pixel_mean, pixel_std=pixels.pixel_std)
        self.backbone = backbone
        self.fpn = neck
        self.anchor_generator = anchor_generator
        self.rpn_head = rpn_head
        self.box_head = box_stages[0].box_head
        self.box_predictor = box_stages[0].box_predictor
        self.later_stages = nn.ModuleList(box_stages[1:])
        self.mask_head = mask_head
        self.num_stages = len(box_stages)
        self.config = config
        self.size_divisor = size_divisor
        self.roi_resolution = config.roi.resolution_with(config.neck.kind)
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
        config, sizes = self.config, images.sizes
        proposals = make_proposals(rpn, sizes, config=config.rpn, training=False)
        for stage in range(self.num_stages):
            regions = self.region_features(features, proposals.boxes)
            class_logits, deltas = self.box_outputs(regions, stage=stage)
            weights = config.roi.box_weights_of(stage)
            if stage < self.num_stages - 1:
                boxes = refine_boxes(
                    class_logits, deltas, proposals.boxes, sizes, box_weights=weights
                )
                proposals = replace(proposals, boxes=boxes)
        found = select_detections(
            class_logits, deltas, proposals, images, box_weights=weights, config=config.roi
        )
        masks = None if self.mask_head is None else self._masks(features, found)
        return to_detections(found, images, masks=masks, aligned=config.mask.aligned)

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
                shapes, images.sizes, size_divisor=self.size_divisor
            ),
            level_sizes=tuple(h * w * self.anchor_generator.num_anchors for h, w in shapes),
        )

    def rpn_at(self, features: Mapping[str, Tensor], idxs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objectness logits (B, S) and deltas (B, S, 4) of anchors (B, S) alone."""
        levels = [features[level] for level in self.rpn_levels]
        logits, deltas = self.rpn_head.at(levels, idxs)
        return logits, deltas

    def region_features(self, features: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
        """Return what the heads look at, (B, R, C, h, w): pooled RoIs, on c4 after conv5."""
        resolution = self.roi_resolution
        if self.fpn is None and self.config.roi.pool == "roi_align":

            def pool(feature: Tensor, stride: int) -> Tensor:
                return self._pool({"c4": feature}, boxes, resolution=resolution, bin_stride=stride)

            pooled = self.backbone.pool_then_stage(features["c4"], 5, pool=pool)
        else:
            pooled = self._pool(features, boxes, resolution=resolution)
            if self.fpn is None:
                pooled = self.backbone.stage(pooled, 5)
        regions: Tensor = pooled.unflatten(0, boxes.shape[:2])
        return regions

    def box_outputs(self, regions: Tensor, *, stage: int = 0) -> tuple[Tensor, Tensor]:
        """Return class logits and deltas of one of the head's stages.

        Args:
            regions: (B, R, C, h, w), `region_features` of boxes.
            stage: from 0 on.

        Returns:
            class logits (B, R, K+1), background last, and deltas (B, R, K, 4) from the boxes,
            scaled by the stage's `box_weights_of`.
        """
        pooled = regions.flatten(0, 1)
        if stage == 0:
            class_logits, deltas = self.box_predictor(self.box_head(pooled))
        else:
            class_logits, deltas = self.later_stages[stage - 1](pooled)
        shape = regions.shape[:2]
        return class_logits.unflatten(0, shape), deltas.unflatten(0, shape)

    def mask_logits(
        self, features: Mapping[str, Tensor], boxes: Tensor, *, regions: Tensor | None = None
    ) -> Tensor:
        """Return mask logits of every class over boxes (B, R, 4): (B, R, K, M, M).

        On c4 the masks share `region_features` with the boxes: `regions`, where they are at hand.
        """
        assert self.mask_head is not None, "a detector without a mask head"
        if self.fpn is not None:
            pooled = self._pool(features, boxes, resolution=MASK_RESOLUTION)
        else:
            shared = self.region_features(features, boxes) if regions is None else regions
            pooled = shared.flatten(0, 1)
        logits: Tensor = self.mask_head(pooled).unflatten(0, boxes.shape[:2])
        return logits

    def _masks(self, features: Mapping[str, Tensor], found: Selection) -> Tensor:
        """Return mask probabilities (B, d, M, M) of the d detections that any image has."""
        count = int((found.scores >= 0).sum(dim=1).max())
        logits = self.mask_logits(features, found.boxes[:, :count])
        return masks_of_labels(logits, found.labels[:, :count]).float().sigmoid()

    def _pool(
        self,
        features: Mapping[str, Tensor],
        boxes: Tensor,
        *,
        resolution: int,
        bin_stride: int = 1,
    ) -> Tensor:
        config = self.config.roi
        return pool_rois(
            [features[level] for level in self.roi_levels],
            self.roi_strides,
            boxes,
            kind=config.pool,
            resolution=resolution,
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
            bin_stride=bin_stride,
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
