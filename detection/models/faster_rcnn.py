"""Faster R-CNN and Mask R-CNN on a residual network: on c4 as in the paper, or on a pyramid (FPN).

B images, R RoIs per image, K classes, C channels, M cells along a mask's side. Boxes are in
network-input pixels; detections are in original pixels. The model knows neither targets nor losses;
a task calls its parts in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from backbones.features import Backbone
from backbones.fpn import FPN
from backbones.pixel_normalization import PixelNormalizedNetwork
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
"""Side of the map pooled for a mask from the pyramid; the mask itself has twice this side."""


class FasterRCNN(PixelNormalizedNetwork):
    """Faster R-CNN. Parts in order: `features`, `rpn`, `region_features`, `box_outputs`.

    Functions without parameters connect them: `make_proposals`, `refine_boxes` and
    `select_detections`.

    Without a neck, RPN and RoI pooling work on c4, and conv5 (the backbone's layer4) runs on every
    pooled RoI (the paper's appendix A). With a feature pyramid the RPN works on p2..p6 and RoI
    pooling on p2..p5. The second and third of `box_stages` classify and move the boxes of the stage
    before (Cai and Vasconcelos 2018). Detections come from the last stage.

    Args:
        backbone: the backbone, without `fc`.
        neck: the feature pyramid; None: the heads work on c4.
        anchor_generator: anchors on the levels that the RPN works on.
        rpn_head: the RPN's layers.
        box_stages: the region head's stages, at least one.
        config: how RoIs are pooled, proposals made and detections selected.
        size_divisor: multiple to which an image is padded.
        mask_head: the mask head; None: Faster R-CNN.
    """

    def __init__(
        self,
        backbone: Backbone,
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
        # Two attributes, not a list: state dict keys stay those of a detector with one stage.
        self.box_head = box_stages[0].box_head
        self.box_predictor = box_stages[0].box_predictor
        self.later_stages = nn.ModuleList(box_stages[1:])
        self.mask_head = mask_head
        self.num_stages = len(box_stages)
        self.config = config
        self.size_divisor = size_divisor
        self.roi_resolution = config.roi.resolution_with(config.neck.kind, config.backbone.kind)
        specs = backbone.feature_specs if neck is None else neck.feature_specs
        self.rpn_levels = ("c4",) if neck is None else ("p2", "p3", "p4", "p5", "p6")
        self.roi_levels = ("c4",) if neck is None else ("p2", "p3", "p4", "p5")
        self.roi_strides = tuple(specs[level].stride for level in self.roi_levels)
        strides = tuple(specs[level].stride for level in self.rpn_levels)
        assert anchor_generator.strides == strides, f"{anchor_generator.strides} on {strides}"

    @torch.no_grad()
    def predict(self, images: ImageBatch) -> list[Detections]:
        """Return the objects found in each image, in original pixels, on the CPU."""
        found, masks = self.select(images)
        return to_detections(found, images, masks=masks, aligned=self.config.mask.aligned)

    @torch.no_grad()
    def select(
        self, images: ImageBatch, *, all_masks: bool = False
    ) -> tuple[Selection, Tensor | None]:
        """Return the detections of each image and their masks, all on the device.

        Args:
            images: the batch.
            all_masks: compute masks for every row of the selection. Then no shape depends on what
                is detected, and the host waits for nothing. By default only as many rows get a mask
                as the image with the most detections has.

        Returns:
            the detections, and (B, d, M, M) float32 mask probabilities of their first d rows, no
            image having more; None without a mask head.
        """
        features = self.features(images)
        rpn = self.rpn(features, images)
        config, sizes = self.config, images.sizes
        proposals = make_proposals(rpn, sizes, config=config.rpn, training=False)
        for stage in range(self.num_stages):
            regions = self.region_features(features, proposals.boxes)
            class_logits, deltas = self.box_outputs(regions, stage=stage)
            weights = config.roi.box_weights_of(stage)
            # The last stage's boxes are decoded by select_detections, for every class.
            if stage < self.num_stages - 1:
                boxes = refine_boxes(
                    class_logits, deltas, proposals.boxes, sizes, box_weights=weights
                )
                proposals = replace(proposals, boxes=boxes)
        found = select_detections(
            class_logits, deltas, proposals, images, box_weights=weights, config=config.roi
        )
        if self.mask_head is None:
            return found, None
        rows = found if all_masks else found.without_empty_rows()
        logits = masks_of_labels(self.mask_logits(features, rows.boxes), rows.labels)
        return found, logits.float().sigmoid()

    def features(self, images: ImageBatch) -> dict[str, Tensor]:
        """Return the feature maps (B, C, H, W) by name: c2..c4, or p2..p6 with a neck."""
        pixels = self._masked_pixels(images)
        if self.fpn is None:
            return self.backbone.features(pixels, upto=4)
        pyramid: dict[str, Tensor] = self.fpn(self.backbone.features(pixels))
        return pyramid

    def rpn(self, features: Mapping[str, Tensor], images: ImageBatch) -> RPNOutput:
        """Return the objectness logit and the deltas of every anchor."""
        levels = [features[level] for level in self.rpn_levels]
        objectness_logits, deltas = self.rpn_head(levels)
        shapes = [(level.shape[2], level.shape[3]) for level in levels]  # (height, width)
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
        """Return objectness logits (B, S) and deltas (B, S, 4) of anchors `idxs` (B, S) only."""
        levels = [features[level] for level in self.rpn_levels]
        logits, deltas = self.rpn_head.at(levels, idxs)
        return logits, deltas

    def region_features(self, features: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
        """Return the heads' input (B, R, C, h, w): pooled RoIs; without a neck, conv5 of them."""
        resolution = self.roi_resolution
        if self.fpn is None and self.config.roi.pool == "roi_align":
            # RoIAlign is linear, so it commutes with conv5's first 1x1 convolutions. They run once
            # on the map instead of on every RoI.
            def pool(feature: Tensor, stride: int) -> Tensor:
                return self._pool({"c4": feature}, boxes, resolution=resolution, bin_stride=stride)

            pooled = self.backbone.pool_then_stage(features["c4"], 5, pool=pool)
        else:
            pooled = self._pool(features, boxes, resolution=resolution)
            if self.fpn is None:
                pooled = self.backbone.stage(pooled, 5)
        regions: Tensor = pooled.unflatten(0, boxes.shape[:2])  # (B * R, ...) -> (B, R, ...)
        return regions

    def box_outputs(self, regions: Tensor, *, stage: int = 0) -> tuple[Tensor, Tensor]:
        """Return class logits and deltas of one stage of the region head.

        Args:
            regions: (B, R, C, h, w), the `region_features` of some boxes.
            stage: 0 is the first.

        Returns:
            class logits (B, R, K+1), background last, and deltas (B, R, K, 4) relative to the
            boxes, scaled by the stage's `box_weights_of`.
        """
        pooled = regions.flatten(0, 1)  # the head takes one batch of B * R RoIs
        if stage == 0:
            class_logits, deltas = self.box_predictor(self.box_head(pooled))
        else:
            class_logits, deltas = self.later_stages[stage - 1](pooled)
        shape = regions.shape[:2]
        return class_logits.unflatten(0, shape), deltas.unflatten(0, shape)

    def mask_logits(
        self, features: Mapping[str, Tensor], boxes: Tensor, *, regions: Tensor | None = None
    ) -> Tensor:
        """Return mask logits (B, R, K, M, M) of every class over `boxes` (B, R, 4).

        Without a neck, masks use the same `region_features` as the boxes. Pass them as `regions`
        if they are computed already.
        """
        assert self.mask_head is not None, "this detector has no mask head"
        if self.fpn is not None:
            pooled = self._pool(features, boxes, resolution=MASK_RESOLUTION)
        else:
            shared = self.region_features(features, boxes) if regions is None else regions
            pooled = shared.flatten(0, 1)
        logits: Tensor = self.mask_head(pooled).unflatten(0, boxes.shape[:2])
        return logits

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
        """Return normalised float pixels (B, 3, H, W); padding is 0, as in a padded convolution."""
        height, width = images.pixels.shape[2:]
        sizes = images.sizes[:, :, None, None]  # (B, 2, 1, 1)
        rows = torch.arange(height, device=sizes.device)[:, None] < sizes[:, :1]  # (B, 1, H, 1)
        columns = torch.arange(width, device=sizes.device) < sizes[:, 1:]  # (B, 1, 1, W)
        pixels = self.normalize(images.pixels)
        # Set to 0 after normalisation, which turns black into a negative number. Not by
        # masked_fill, which would lose the memory layout of `pixels`.
        return torch.where(rows & columns, pixels, 0.0)
